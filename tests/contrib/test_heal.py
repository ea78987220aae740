"""HEAL: entropies over time against those of the other domain, in a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from update_problem import G, N, P, make_data

from entropy_rl.advantages import chain, group_normalize
from entropy_rl.contrib import heal
from entropy_rl.learner.batch import token_stats
from entropy_rl.learner.rollout_advantages import make_rollout_advantages
from entropy_rl.types import DATA_AXES, TENSOR_AXIS, TokenStats


def stats_of(entropy, mask, domain) -> TokenStats:
    nothing = jnp.zeros(mask.shape)
    return TokenStats(
        log_probs=None,
        old_log_probs=nothing,
        entropy=None,
        old_entropy=jnp.asarray(entropy, jnp.float32),
        mask=jnp.asarray(mask),
        has_reward=jnp.ones(len(mask), bool),
        extras={"source/general": jnp.asarray(domain, jnp.float32)[:, None]},
    )


def added(entropy, mask, domain, min_tokens=0):
    """What HEAL adds to rewards of 0.5."""
    transform = heal("general", min_tokens=min_tokens)
    rewards = jnp.full((len(mask), 1), 0.5)
    return np.asarray(transform(rewards, stats_of(entropy, mask, domain)))[:, 0] - 0.5


def float64_distance(one, other):
    length = max(len(one), len(other))
    p, q = ([x[t * len(x) // length] for t in range(length)] for x in (one, other))
    p, q = (np.exp(np.array(x)) / np.exp(np.array(x)).sum() for x in (p, q))
    return float((p * np.log(p / q)).sum())


def float64_rewards(rows, domain, min_tokens):
    """Of rows of entropies: 1 where the nearest other row is of the other domain."""
    found = np.zeros(len(rows))
    for i, one in enumerate(rows):
        to = {True: [np.inf], False: [np.inf]}
        for j, other in enumerate(rows):
            if j != i and len(one) and len(other):
                to[bool(domain[j]) == bool(domain[i])].append(float64_distance(one, other))
        found[i] = len(one) > min_tokens and min(to[False]) < min(to[True]) < np.inf
    return found


def test_a_course_of_entropy_is_compared_with_those_of_both_domains_as_in_a_float64_loop():
    rng = np.random.default_rng(0)
    lengths, domain = rng.integers(1, 12, 14), np.arange(14) % 3 == 0
    lengths[5] = 0
    mask = np.arange(12) < lengths[:, None]
    entropy = np.where(mask, rng.exponential(1.5, mask.shape), np.nan).astype(np.float32)
    rows = [entropy[i, : lengths[i]].astype(np.float64) for i in range(14)]
    wanted = float64_rewards(rows, domain, 3)
    assert added(entropy, mask, domain, 3).tolist() == wanted.tolist() and 2 < wanted.sum() < 12
    # The observations of an episode are no part of the course.
    columns = np.sort(rng.permutation(20)[:12])
    apart, gaps = np.full((14, 20), np.nan, np.float32), np.zeros((14, 20), bool)
    apart[:, columns], gaps[:, columns] = entropy, mask
    assert added(apart, gaps, domain, 3).tolist() == wanted.tolist()


def test_padding_changes_no_reward_and_short_or_lonely_rows_have_none():
    rng = np.random.default_rng(1)
    entropy, mask = rng.random((6, 5)), np.ones((6, 5), bool)
    domain = np.array([0, 0, 0, 1, 1, 1])
    one = added(entropy, mask, domain)
    padded = [np.pad(x, ((0, 0), (0, 3))) for x in (entropy, mask)]
    assert one.sum() > 0 and (added(*padded, domain) == one).all()
    assert not added(entropy, mask, domain, 5).any()
    assert added(entropy, mask, np.array([0, 0, 0, 0, 0, 1]))[5] == 0


def test_entropies_of_completions_above_46340_tokens_are_stretched_without_overflow():
    """The short wave is the long one without every other value, so its own domain is nearest."""
    long = np.arange(60_000) // 11_583 % 2.0
    short, constant = np.pad(long[::2], (0, 30_000)), np.full(60_000, 0.5)
    mask = np.ones((3, 60_000), bool)
    mask[1, 30_000:] = False
    assert not added(np.stack([long, short, constant]), mask, np.array([0, 0, 1]))[:2].any()


def test_it_compares_the_completions_of_all_mini_batches_on_any_number_of_devices():
    rng = np.random.default_rng(2)
    domain = jnp.asarray(np.repeat(rng.integers(0, 2, P), G)[:, None], jnp.float32)
    batches = [
        make_data(seed, has_reward=np.arange(P * G) != seed).replace(
            extras={"source/general": domain if seed else 1 - domain},
            old_entropy=jnp.asarray(rng.exponential(1, (P * G, N)), jnp.float32),
        )
        for seed in range(2)
    ]
    transform = chain(heal("general", min_tokens=0), group_normalize(G))
    split = make_rollout_advantages(transform)(batches)
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *batches)
    expected = transform(whole.rewards[:, None], token_stats(whole))
    found = jnp.concatenate([batch.rollout_advantages for batch in split])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    alone = [transform(b.rewards[:, None], token_stats(b)) for b in batches]
    assert found.shape == (2 * P * G, 1) and abs(jnp.concatenate(alone) - found).max() > 0.1
    axes = (*DATA_AXES, TENSOR_AXIS)
    mesh = jax.make_mesh((2, 2, 2), axes, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    on_devices = jax.device_put(batches, NamedSharding(mesh, PartitionSpec(DATA_AXES)))
    for one, other in zip(split, make_rollout_advantages(transform, mesh)(on_devices), strict=True):
        np.testing.assert_allclose(
            other.rollout_advantages, one.rollout_advantages, rtol=1e-6, atol=1e-6
        )


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"heal\.general: must be the name of a source"):
        heal("")
    with pytest.raises(ValueError, match=r"heal\.weight: must be a number > 0, got 0"):
        heal("general", weight=0)
    with pytest.raises(ValueError, match=r"heal: stats\.extras must have 'source/other', got \["):
        mask = np.ones((2, N), bool)
        heal("other")(jnp.ones((2, 1)), stats_of(mask, mask, [0, 1]))
