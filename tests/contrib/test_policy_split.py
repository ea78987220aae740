"""Policy Split: the bonus of two modes, in a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.contrib import policy_split
from entropy_rl.types import TokenStats

G, N = 2, 4
HIGH = np.array([True, True, False, False, True, True])


def make_stats(own, other, mask, estimate):
    values = {"log_probs": jnp.full(mask.shape, jnp.nan), "entropy": jnp.full(mask.shape, jnp.nan)}
    extras = {f"other_{name}": x for name, x in values.items()}
    name, sign = ("log_probs", -1) if estimate == "log_prob" else ("entropy", 1)
    # NaN wherever nothing counts.
    values[name] = sign * jnp.where(mask, own, jnp.nan)
    extras[f"other_{name}"] = sign * jnp.where(mask, other, jnp.nan)
    extras["source/high_entropy"] = jnp.asarray(HIGH, jnp.float32)[:, None]
    return TokenStats(
        log_probs=None,
        old_log_probs=values["log_probs"],
        entropy=None,
        old_entropy=values["entropy"],
        mask=jnp.asarray(mask),
        has_reward=jnp.ones(len(mask), bool),
        extras=extras,
    )


@pytest.mark.parametrize("estimate", ["log_prob", "entropy"])
@pytest.mark.parametrize("kappa", [None, 2.0])
def test_the_bonus_of_two_modes_equals_a_float64_loop(kappa, estimate):
    rng = np.random.default_rng(2)
    own, other = rng.exponential(1, (2, 6, N)).astype("f4")
    mask = np.arange(N) < np.array([4, 2, 3, 4, 1, 4])[:, None]
    advantages = rng.normal(0, 1, (6, 1)).astype("f4")
    transform = policy_split(G, 0.7, eta_high=0.5, eta_normal=0.3, kappa=kappa, estimate=estimate)
    found = transform(jnp.array(advantages), make_stats(own, other, mask, estimate))
    wanted = np.broadcast_to(advantages.astype(np.float64), mask.shape).copy()
    for group in range(3):
        rows = slice(group * G, (group + 1) * G)
        mixed = 0.7 * own[rows].astype(np.float64) + 0.3 * other[rows]
        tokens = mixed[mask[rows]]
        z = (mixed - tokens.mean()) / (tokens.std(ddof=1) + 1e-6)
        bonus = (0.5 if HIGH[group * G] else -0.3) * z
        if kappa:
            limit = np.abs(wanted[rows]) / kappa
            bonus = np.clip(bonus, -limit, limit)
        wanted[rows] += np.where(mask[rows], bonus, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_normal_mode_of_the_paper_is_plain_grpo():
    own, other = np.random.default_rng(3).exponential(1, (2, 6, N))
    mask, advantages = np.ones((6, N), bool), jnp.arange(6.0)[:, None]
    found = policy_split(G, 0.5, eta_high=1)(advantages, make_stats(own, other, mask, "log_prob"))
    plain = np.broadcast_to(advantages, mask.shape)
    np.testing.assert_array_equal(found[~HIGH], plain[~HIGH])
    assert abs(found - plain)[HIGH].min() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(alpha=1.5, eta_high=1), "alpha: must be a number from 0 to 1"),
        (dict(alpha=1, eta_high=-1), "eta_high: must be a number >= 0"),
        (dict(alpha=1, eta_high=0), "eta_high: must be > 0 where eta_normal is 0"),
        (dict(alpha=1, eta_high=1, kappa=0.0), "kappa: must be null or > 0"),
        (dict(alpha=1, eta_high=1, high=""), "high: must be the name of a source"),
    ],
)
def test_settings_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=rf"^policy_split\.{message}"):
        policy_split(G, **arguments)


def test_what_the_batch_lacks_is_named():
    own, mask = np.ones((6, N)), np.ones((6, N), bool)
    stats = make_stats(own, own, mask, "log_prob").replace(extras={})
    with pytest.raises(ValueError, match=r"policy_split: stats\.extras must have 'other_log_pr"):
        jax.eval_shape(policy_split(G, 1.0, 1.0), jnp.ones((6, 1)), stats)
