"""Statistics of scope "batch" are those of all mini-batches of a rollout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from policies import mesh_of, table_policy
from tiny_runs import TRAIN, write_yaml
from update_problem import G, N, P, V, make_data

from entropy_rl.advantages import chain, gae, gpg, group_normalize, shape_by_entropy, whiten
from entropy_rl.advantages.transform import Transform, reads_rollout, recorded_part
from entropy_rl.cli.main import main
from entropy_rl.contrib import eapo, gtpo, miner
from entropy_rl.learner.advantage_log import make_advantages
from entropy_rl.learner.batch import token_stats
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.rollout_advantages import make_base_advantages, make_rollout_advantages
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.types import DATA_AXES, TrainBatch

OF_ROLLOUT = {
    "REINFORCE++": whiten(),
    "whitened GRPO": chain(group_normalize(G), whiten()),
    "GPG": gpg(G),
    "Miner": miner(G, max_share=1e-3),
    "GTPO": gtpo(G),
    "PPO": chain(gae(lam=0.9), whiten()),
    "shaped": chain(group_normalize(G), whiten(), shape_by_entropy()),
}
every_method = pytest.mark.parametrize("name", OF_ROLLOUT)


def of_one_token(rewards):
    """A mini-batch of rows with one token each."""
    rewards = np.asarray(rewards, np.float32)
    zeros = np.zeros((len(rewards), 1), np.float32)
    return TrainBatch(
        ids=np.zeros((len(rewards), 2), np.int32),
        prompt_length=np.ones(len(rewards), np.int32),
        completion_ids=np.zeros((len(rewards), 1), np.int32),
        completion_mask=np.ones((len(rewards), 1), bool),
        old_log_probs=zeros,
        old_entropy=zeros,
        sampler_log_probs=zeros,
        rewards=rewards,
        has_reward=np.ones(len(rewards), bool),
    )


def mini_batches(count=3):
    """Of different success rates; the first has a row without a reward and one without a loss."""
    batches = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        data = make_data(seed, has_reward=np.arange(P * G) != (6 if seed == 0 else -1))
        rewards = (rng.random(P * G) < 0.2 + 0.25 * seed).astype(np.float32)
        rewards[:G] = seed % 2  # a group without contrast
        values = rng.normal(0, 0.3, (P * G, N)).astype(np.float32)
        entropy = rng.exponential(1, (P * G, N)).astype(np.float32)
        arrays = dict(rewards=rewards, values=values, old_entropy=entropy)
        batches.append(data.replace(**jax.tree.map(jnp.asarray, arrays)))
    batches[0] = batches[0].replace(loss_row_mask=jnp.arange(P * G) != 3)
    return [
        b if b.loss_row_mask is not None else b.replace(loss_row_mask=jnp.ones(P * G, bool))
        for b in batches
    ]


def joined(batches):
    return jax.tree.map(lambda *x: jnp.concatenate(x), *batches)


def test_whitening_two_mini_batches_by_hand():
    # verl's compute_advantage(batch) over all 8 rows: mean 0, variance 8 / 7, so ±√(7 / 8). Over
    # each mini-batch of 4 it would be 0.5 and -1.5.
    batches = [of_one_token([1, 1, 1, -1]), of_one_token([-1, -1, -1, 1])]
    first, second = make_rollout_advantages(whiten())(batches)
    one = np.sqrt(7 / 8)
    np.testing.assert_allclose(first.rollout_advantages[:, 0], [one, one, one, -one], rtol=1e-6)
    np.testing.assert_allclose(second.rollout_advantages[:, 0], [-one, -one, -one, one], rtol=1e-6)
    of_each = make_base_advantages(whiten())(batches[0], token_stats(batches[0]))
    np.testing.assert_allclose(of_each[:, 0], [0.5, 0.5, 0.5, -1.5], rtol=1e-6)


@every_method
def test_the_cut_into_mini_batches_does_not_change_the_advantages(name):
    advantage, batches = OF_ROLLOUT[name], mini_batches()
    together = joined(batches)
    whole = make_base_advantages(advantage)(together, token_stats(together))
    found = make_rollout_advantages(advantage)(batches)
    split = np.concatenate([b.rollout_advantages for b in found])
    counts = np.asarray(token_stats(together).mask)
    np.testing.assert_allclose(
        np.where(counts, split, 0), np.where(counts, whole, 0), rtol=1e-5, atol=1e-6
    )
    alone = np.concatenate([make_base_advantages(advantage)(b, token_stats(b)) for b in batches])
    assert np.abs(np.where(counts, alone - split, 0)).max() > 1e-4, "the problem must show it"


@every_method
def test_update_and_log_use_the_advantages_of_the_rollout(name, key):
    policy, optimizer = table_policy(V), optax.sgd(0.3)
    advantage, batches = OF_ROLLOUT[name], mini_batches()
    found = make_rollout_advantages(advantage)(batches)
    update = make_update(policy, advantage, optimizer)
    state, metrics = update(init_state(policy.init(key), optimizer), found[1])
    assert np.isfinite(metrics["loss"])
    alone, _ = update(init_state(policy.init(key), optimizer), batches[1])
    assert abs(state.params["table"] - alone.params["table"]).max() > 1e-6
    log = make_advantages(advantage, P * G)(found[1])
    wide = np.broadcast_to(found[1].rollout_advantages, (P * G, N))
    mask = np.asarray(log.mask)
    np.testing.assert_array_equal(
        np.broadcast_to(log.before, mask.shape)[mask], wide[mask].astype(np.float32)
    )


@pytest.mark.parametrize("limit", [9, 30])
def test_micro_batches_do_not_change_an_update_with_advantages_of_the_rollout(limit, key):
    policy, optimizer = table_policy(V), optax.sgd(0.3)
    for advantage in (OF_ROLLOUT["GPG"], OF_ROLLOUT["shaped"]):
        batch = make_rollout_advantages(advantage)(mini_batches())[0]
        whole, parts = (
            make_update(policy, advantage, optimizer, settings=settings)(
                init_state(policy.init(key), optimizer), batch
            )[0]
            for settings in (PassSettings(), PassSettings(max_tokens_per_micro_batch=limit))
        )
        np.testing.assert_allclose(
            whole.params["table"], parts.params["table"], rtol=2e-5, atol=2e-6
        )


def test_eight_devices_give_the_advantages_of_one():
    mesh = mesh_of(2, 2, 2)
    by_rows = NamedSharding(mesh, PartitionSpec(DATA_AXES))
    advantage, batches = OF_ROLLOUT["shaped"], mini_batches()
    on_mesh = make_rollout_advantages(advantage, mesh)(jax.device_put(batches, by_rows))
    for one, other in zip(make_rollout_advantages(advantage)(batches), on_mesh, strict=True):
        assert other.rollout_advantages.sharding.is_equivalent_to(by_rows, 2)
        mask = np.asarray(one.completion_mask & one.has_reward[:, None])
        np.testing.assert_allclose(
            np.asarray(other.rollout_advantages)[mask],
            np.asarray(one.rollout_advantages)[mask],
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_chain_is_cut_before_the_first_member_that_reads_the_policy():
    reader = Transform(lambda a, stats: a + stats.entropy.mean(), "batch", needs_policy=True)
    recorded, rest = recorded_part(chain(group_normalize(G), whiten(), reader, whiten()))
    assert [len(part.members) for part in (recorded, rest)] == [2, 2]
    assert reads_rollout(chain(group_normalize(G), whiten(), eapo()))
    for advantage in (
        group_normalize(G),
        chain(group_normalize(G), shape_by_entropy(), whiten()),
        chain(reader, whiten()),
        eapo(),
        chain(),
    ):
        assert not reads_rollout(advantage)
        assert make_rollout_advantages(advantage) is None


def test_members_that_read_the_policy_start_from_the_advantages_of_the_rollout():
    reader = Transform(lambda a, stats: a * stats.entropy, "batch", needs_policy=True)
    advantage = chain(whiten(), reader)
    batch = make_rollout_advantages(advantage)(mini_batches())[1]
    stats = token_stats(batch, batch.old_log_probs, jnp.full((P * G, N), 2.0))
    found = make_base_advantages(advantage)(batch, stats)
    np.testing.assert_allclose(found, 2 * batch.rollout_advantages, rtol=1e-6)


@pytest.mark.slow
def test_a_run_whitens_over_the_rollout_however_many_updates_it_has(here):
    train = TRAIN | {
        "steps": 1,
        "advantage": [{"name": "group_center"}, {"name": "whiten"}],
        "run": {"directory": "run", "samples_per_step": 8},
    }
    found = []
    for prompts in (4, 2):
        write_yaml(
            here / "train.yaml",
            train | {"batching": TRAIN["batching"] | {"mini_batch_prompts": prompts}},
        )
        directory = here / f"run-{prompts}"
        assert main(["train", "--config", "train.yaml", "--run.directory", str(directory)]) == 0
        rows = (directory / "samples.jsonl").read_text().splitlines()
        found.append([json.loads(row)["advantage_before"] for row in rows])
    assert len(found[1]) == 8 and any(abs(x) > 0.1 for row in found[1] for x in row)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
