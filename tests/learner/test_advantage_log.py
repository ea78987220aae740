"""What training records of the advantages is what its first update was given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policies import table_policy

from entropy_rl.advantages import chain, group_normalize, shape_by_entropy, whiten
from entropy_rl.learner.advantage_log import advantage_fields, make_advantages
from entropy_rl.learner.gradient import make_gradient
from entropy_rl.types import TrainBatch

ROWS, NEW, VOCAB = 4, 5, 11


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    ids = draw.integers(0, VOCAB, (ROWS, NEW + 1)).astype(np.int32)
    lengths = np.array([5, 3, 2, 4])
    mask = np.arange(NEW)[None] < lengths[:, None]
    random = lambda: draw.random((ROWS, NEW)).astype(np.float32)  # noqa: E731
    return TrainBatch(
        ids=ids,
        prompt_length=np.ones(ROWS, np.int32),
        completion_ids=ids[:, 1:],
        completion_mask=mask,
        old_log_probs=-random(),
        old_entropy=random(),
        sampler_log_probs=-random(),
        rewards=np.array([1, 0, 1, 0], np.float32),
        has_reward=np.array([True, True, True, False]),
    )


def test_the_numbers_are_those_of_the_two_halves_of_the_chain(batch):
    found = jax.device_get(
        make_advantages(chain(group_normalize(4), shape_by_entropy()), rows=3)(batch)
    )
    rewards = np.array([1, 0, 1.0])
    before = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    assert found.before == pytest.approx(before[:, None], abs=1e-6)
    bonus = np.minimum(0.4 * batch.old_entropy[:3], np.abs(before[:, None]) / 2)
    after = np.where(found.mask, before[:, None] + bonus, 0)
    assert np.where(found.mask, found.after, 0) == pytest.approx(after, abs=1e-6)


def test_a_row_without_a_judgement_or_of_a_later_mini_batch_has_nulls(batch):
    found = jax.device_get(make_advantages(chain(group_normalize(4)), rows=9)(batch))
    *known, unjudged, later = advantage_fields(found, 5)
    assert [len(row["advantage_before"]) for row in known] == [1, 1, 1] and known[0][
        "reward"
    ] == 1.0
    nothing = {"reward": None, "advantage_before": None, "advantage_after": None}
    assert unjudged == later == nothing


def test_the_update_itself_is_given_the_same(batch):
    # On-policy: with the table's own log-probs and entropies the first update sees what is
    # recorded.
    seen = []

    def spy(advantages, stats):
        jax.debug.callback(
            lambda x, h: seen.append((np.array(x), np.array(h))), advantages, stats.entropy
        )
        return advantages

    policy = table_policy(VOCAB)
    params = policy.init(jax.random.key(0))
    chained = chain(group_normalize(4), shape_by_entropy(), whiten())
    jax.jit(make_gradient(policy, chain(chained, spy)))(params, jax.tree.map(jnp.asarray, batch))
    jax.effects_barrier()
    shaped, entropy = seen[-1]
    recorded = make_advantages(chained, rows=ROWS)(batch.replace(old_entropy=entropy))
    mask = np.asarray(recorded.mask)
    assert np.asarray(recorded.after)[mask] == pytest.approx(shaped[mask], abs=1e-5)
