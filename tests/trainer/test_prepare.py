"""Mini-batches of scored groups: which arrays of their rows reach the update."""

from types import SimpleNamespace

import numpy as np

from entropy_rl.experience.experience import Experience, ScoredGroups
from entropy_rl.trainer.prepare import Prepare
from entropy_rl.types import FinishReason, Rollout

P, G, N = 4, 2, 3
ROWS = P * G
ROLLOUT = Rollout(
    prompt_ids=np.ones((P, 2), np.int32),
    prompt_mask=np.ones((P, 2), bool),
    completion_ids=np.broadcast_to(np.arange(ROWS, dtype=np.int32)[:, None], (ROWS, N)),
    completion_mask=np.ones((ROWS, N), bool),
    log_probs=np.zeros((ROWS, N), np.float32),
    entropy=np.zeros((ROWS, N), np.float32),
    finish_reason=np.array([FinishReason.EOS, FinishReason.LENGTH] * P, np.int32),
)


def prepare(mask_truncated: bool = False, rollout_advantages=None, **more: np.ndarray):
    placement = SimpleNamespace(put_rows=lambda tree: tree)
    model = SimpleNamespace(placement=placement, pad_id=0, params=None)
    rows = {
        "rewards": np.arange(ROWS, dtype=np.float32),
        "has_reward": np.arange(ROWS) % 3 > 0,
        "verdicts": np.zeros(ROWS, np.int32),
    }
    first = np.zeros(P, np.int32)
    groups = ScoredGroups(ROLLOUT, np.arange(P), first, rows | more)
    programs = SimpleNamespace(critic=None, rollout_advantages=rollout_advantages)
    of_run = Prepare(programs, model, 2, "sampler", mask_truncated)
    return of_run(None, Experience(groups, None, ROWS, rounds=3))


def test_every_array_that_a_mini_batch_has_is_passed_on_and_cut_like_its_rows():
    weights, greedy = np.random.default_rng(0).random((ROWS, N)), np.arange(ROWS) / 8
    data = prepare(extras={"weights": weights}, greedy_rewards=greedy)
    assert data.rounds == 3 and len(data.batches) == 2
    for i, batch in enumerate(data.batches):
        own = slice(i * ROWS // 2, (i + 1) * ROWS // 2)
        assert batch.completion_ids[:, 0].tolist() == list(range(ROWS))[own]
        assert batch.rewards.tolist() == list(range(ROWS))[own]
        assert batch.has_reward.tolist() == [row % 3 > 0 for row in range(ROWS)][own]
        np.testing.assert_array_equal(batch.extras["weights"], weights[own])
        np.testing.assert_array_equal(batch.greedy_rewards, greedy[own])
        assert batch.loss_row_mask is None


def test_a_row_is_excluded_from_the_loss_if_either_rule_excludes_it():
    mask = np.arange(ROWS) < 6
    ended = [True, False] * P
    of_run = {
        "truncated": prepare(mask_truncated=True),
        "collector": prepare(loss_row_mask=mask),
        "both": prepare(mask_truncated=True, loss_row_mask=mask),
    }
    found = {
        name: [bool(x) for batch in data.batches for x in batch.loss_row_mask]
        for name, data in of_run.items()
    }
    assert found["truncated"] == ended and found["collector"] == mask.tolist()
    assert found["both"] == [a and b for a, b in zip(ended, mask, strict=True)]


def test_advantages_of_the_rollout_are_computed_from_all_scored_mini_batches():
    def mean_over_rollout(batches):
        mean = np.mean([batch.rewards.mean() for batch in batches])
        return [batch.replace(rollout_advantages=batch.rewards - mean) for batch in batches]

    data = prepare(rollout_advantages=mean_over_rollout)
    found = np.concatenate([batch.rollout_advantages for batch in data.batches])
    np.testing.assert_array_equal(found, np.arange(ROWS) - 3.5)


def test_the_reference_is_the_starting_policy_and_old_log_probs_are_those_of_the_state():
    log_prob = {"start": -2.0, "now": -1.0}

    def stats(params, batch):
        return (np.full(batch.completion_ids.shape, log_prob[params]),) * 2

    placement = SimpleNamespace(put_rows=lambda tree: tree)
    model = SimpleNamespace(
        placement=placement, pad_id=0, params="start", params_with=lambda params: params
    )
    programs = SimpleNamespace(critic=None, rollout_advantages=None, stats=stats)
    rows = {"rewards": np.zeros(ROWS, np.float32), "has_reward": np.ones(ROWS, bool)}
    groups = ScoredGroups(ROLLOUT, np.arange(P), np.zeros(P, np.int32), rows)
    of_run = Prepare(programs, model, 2, "trainer", False)
    data = of_run(SimpleNamespace(params="now"), Experience(groups, None, ROWS))
    assert len(data.batches) == 2
    for batch in data.batches:
        assert (batch.ref_log_probs == -2).all() and (batch.old_log_probs == -1).all()
