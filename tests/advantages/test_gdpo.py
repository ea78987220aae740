"""GDPO with the numbers of TRL and veRL, and baselines of graded rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from update_problem import G, N, P, make_data

from entropy_rl.advantages import build_advantage, chain, gdpo, group_normalize, maxrl
from entropy_rl.learner.batch import token_stats
from entropy_rl.learner.rollout_advantages import make_base_advantages, make_rollout_advantages
from entropy_rl.types import DATA_AXES, TENSOR_AXIS, TokenStats

LENGTHS = np.arange(1, 5)


def stats_of(has_reward=None, **rewards) -> TokenStats:
    """Rows of 1 to 4 tokens, with rewards by label."""
    count = len(next(iter(rewards.values())))
    has_reward = np.ones(count, bool) if has_reward is None else np.array(has_reward)
    mask = np.arange(4)[None] < np.resize(LENGTHS, count)[:, None]
    nothing = jnp.zeros(mask.shape)
    extras = {f"reward/{name}": jnp.asarray(x, jnp.float32)[:, None] for name, x in rewards.items()}
    return TokenStats(
        *[nothing] * 4,
        mask=jnp.asarray(mask & has_reward[:, None]),
        has_reward=jnp.asarray(has_reward),
        extras=extras,
    )


def total_of(stats):
    return sum(stats.extras.values())


TWO = dict(a=[1, 1, 0, 0], b=[0, 10, 0, 0])
WEIGHTS = {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (gdpo(4, WEIGHTS), [0.2060, 1.3321, -0.7690, -0.7690]),  # TRL
        (gdpo(4, WEIGHTS, 1e-6, "token"), [0.5150, 1.7827, -0.5829, -0.5829]),  # veRL
        (group_normalize(4, 1e-4), [-0.3735, 1.4941, -0.5603, -0.5603]),  # GRPO of the sum, TRL
    ],
)
def test_two_rewards_of_one_group_have_the_numbers_of_trl_and_verl(transform, expected):
    stats = stats_of(**TWO)
    advantages = np.asarray(transform(total_of(stats), stats))
    np.testing.assert_allclose(advantages[:, 0], expected, atol=5e-5)
    if advantages.shape[1] > 1:
        assert (advantages[~np.asarray(stats.mask)] == 0).all()


def test_gdpo_agrees_with_a_float64_loop_over_groups_of_which_some_rows_have_no_reward():
    rng = np.random.default_rng(0)
    a, b = rng.random(12), np.round(rng.random(12) * 4)
    b[8:] = 3  # no contrast
    has_reward = rng.random(12) < 0.8
    a[~has_reward] = b[~has_reward] = np.nan
    stats = stats_of(has_reward, a=a, b=b, c=rng.random(12))
    found = gdpo(4, {"a": 0.5, "b": 2.0, "c": 0.0})(jnp.zeros((12, 1)), stats)
    total = np.zeros(12)
    for weight, values in ((0.5, np.float32(a)), (2, np.float32(b))):
        for g in range(0, 12, 4):
            rows = [i for i in range(g, g + 4) if has_reward[i]]
            x = values[rows].astype(np.float64)
            if x.std() > 0:
                total[rows] += weight * (x - x.mean()) / (x.std(ddof=1) + 1e-4)
    x = total[has_reward]
    expected = np.where(has_reward, (total - x.mean()) / (x.std(ddof=1) + 1e-4), 0)
    np.testing.assert_allclose(found[:, 0], expected, rtol=2e-5, atol=1e-6)


def test_equal_sums_have_different_advantages_and_no_contrast_at_all_has_none():
    # All sums are 1, but the second reward is the rarer one.
    stats = stats_of(a=[1, 1, 1, 0], b=[0, 0, 0, 1], c=[2, 2, 2, 2])
    weights = {"a": 1.0, "b": 2.0, "c": 1.0}
    assert np.ptp(gdpo(4, weights)(total_of(stats), stats)) > 1
    stats = stats_of(a=[1] * 4, b=[0.1] * 4)
    np.testing.assert_array_equal(gdpo(4, WEIGHTS)(total_of(stats), stats), 0)


def test_a_reward_of_weight_0_is_not_required():
    stats = stats_of(**TWO)
    found = gdpo(4, WEIGHTS | {"c": 0.0})
    assert found.requires == ("reward/a", "reward/b")
    of_two = gdpo(4, WEIGHTS)(total_of(stats), stats)
    np.testing.assert_array_equal(found(total_of(stats), stats), of_two)


@pytest.mark.parametrize("statistics", ["sequence", "token"])
def test_the_statistics_are_those_of_the_rollout_for_any_number_of_mini_batches(statistics):
    rng = np.random.default_rng(1)
    batches = []
    for seed in range(3):
        data = make_data(seed, has_reward=np.arange(P * G) != 4 * seed)
        rewards = {f"reward/{k}": jnp.asarray(rng.random((P * G, 1)), jnp.float32) for k in "ab"}
        batches.append(data.replace(extras=rewards))
    transform = chain(gdpo(G, WEIGHTS, statistics=statistics))
    split = make_rollout_advantages(transform)(batches)
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *batches)
    expected = transform(whole.rewards[:, None], token_stats(whole))
    base = make_base_advantages(transform)
    found = jnp.concatenate([base(batch, token_stats(batch)) for batch in split])
    assert found.shape == (3 * P * G, 1 if statistics == "sequence" else N)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # So they are on eight devices.
    axes = (*DATA_AXES, TENSOR_AXIS)
    mesh = jax.make_mesh((2, 2, 2), axes, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    on_devices = jax.device_put(batches, NamedSharding(mesh, PartitionSpec(DATA_AXES)))
    for one, other in zip(split, make_rollout_advantages(transform, mesh)(on_devices), strict=True):
        np.testing.assert_allclose(
            other.rollout_advantages, one.rollout_advantages, rtol=1e-5, atol=1e-6
        )


REWARDS = [{"name": "correct"}, {"name": "repetition", "weight": 0.5}]


def test_a_config_gives_gdpo_the_weights_of_its_rewards():
    stats = stats_of(correct=TWO["a"], repetition=TWO["b"])
    built = build_advantage([{"name": "gdpo"}], 4, rewards=REWARDS)
    direct = gdpo(4, {"correct": 1, "repetition": 0.5})
    ones = jnp.ones((4, 1))
    np.testing.assert_array_equal(built(ones, stats), direct(ones, stats))


@pytest.mark.parametrize(
    ("specs", "rewards", "message"),
    [
        (["gdpo"], [], r"gdpo.reward_weights: must be weights by label, not all 0"),
        (["group_center", "gdpo"], REWARDS, r"advantage\[1\]: must be the first .* single rewards"),
    ],
)
def test_gdpo_without_rewards_or_behind_another_transform_is_refused(specs, rewards, message):
    with pytest.raises(ValueError, match=message):
        build_advantage([{"name": name} for name in specs], 4, rewards=rewards)


def test_a_reward_that_the_batch_lacks_is_named():
    stats = stats_of(a=[1.0] * 4)
    with pytest.raises(ValueError, match=r"gdpo: stats.extras must have 'reward/b', got \["):
        gdpo(4, WEIGHTS)(jnp.ones((4, 1)), stats)


def test_maxrl_of_graded_rewards_has_the_numbers_of_its_code():
    stats = stats_of(a=[0.2, 0.8, 0, 0])
    np.testing.assert_allclose(
        maxrl(4)(total_of(stats), stats)[:, 0], [-0.2, 2.2, -1, -1], rtol=1e-5
    )
