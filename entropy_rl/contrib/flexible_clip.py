"""Flexible Entropy Control: PPO with clip ranges that depend on the probability of a token.

A range of the ratio that is linear in the current probability, ε(π) = a π + b, is one of the ratio
alone:

upper: ρₜ ≤ 1 + ε(π)   ⟺   ρₜ ≤ (1 + b) / (1 - a π_old(oₜ))
lower: ρₜ ≥ 1 - ε(π)   ⟺   ρₜ ≥ (1 - b) / (1 + a π_old(oₜ))

With a ≤ 0 both are wide for improbable tokens and narrow for probable ones: a wide upper bound lets
the entropy increase, a wide lower one lets it decrease. Three schedules mix these ranges with a
constant one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.clipping import check_clip_range, clipped_loss, ratio_of
from entropy_rl.losses.controller import BatchSummary, Coefficients, Controller
from entropy_rl.losses.inputs import require_coefficient
from entropy_rl.losses.surrogate import ClipMasks, Surrogate
from entropy_rl.types import TokenStats

# Names of coefficients: weight of the dynamic range, from 0 to 1; the rest is the constant one.
UPPER, LOWER = "dynamic_upper", "dynamic_lower"


def flexible_clip(slope: float, intercept: float, clip_low: float = 0.2) -> Surrogate:
    """PPO with an upper bound that is wide for improbable tokens and narrow for probable ones.

    ρₜ ≤ U(π_old(oₜ)) = (1 + b) / (1 - a π_old(oₜ)),   ρₜ ≥ 1 - ε_low

    From 1 + b at π_old = 0 the bound falls to (1 + b) / (1 - a) at π_old = 1. a = 0 is PPO with
    ε_high = b.

    Source: the dynamic upper bound of Flexible Entropy Control, https://arxiv.org/abs/2602.09782,
    from a description by its author. The values of a and b were not published, so they have no
    default here.

    Args:
      slope: -b ≤ a ≤ 0: below that the bound would be less than 1 for probable tokens.
      intercept: b > 0.
      clip_low: ε_low, 0 < ε_low < 1; PPO's.

    Returns:
      A surrogate of scope "token".

    Raises:
      ValueError: An argument is out of range.
    """
    check_clip_range("flexible_clip", clip_low, intercept)
    _check_slope("flexible_clip.slope", slope, "intercept", intercept)

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        upper = 1 + _upper_range(stats, slope, intercept)
        return clipped_loss(ratio_of(stats), advantages, 1 - clip_low, upper)

    return Surrogate(loss, "token")


def flexible_clip_id(
    total_steps: int,
    clip: float,
    slope: float,
    intercept: float,
    low_slope: float,
    low_intercept: float,
) -> Surrogate:
    """Flexible Entropy Control, schedule ID: increase the entropy, then decrease it.

    E⁺ = w⁺ H(π_old) + (1 - w⁺) ε,   E⁻ = w⁻ M(π_old) + (1 - w⁻) ε,   1 - E⁻ ≤ ρₜ ≤ 1 + E⁺
    k ≤ T / 2: w⁺ = λ, w⁻ = 0;   else: w⁺ = 0, w⁻ = 1 + λ;   λ = 1 - 2 k / T

    H and M are the dynamic upper and lower range (see the module), k the number of earlier
    rollouts, at most T.

    Source: https://arxiv.org/abs/2602.09782, from a description by its author. Partly
    reconstructed: of M it is only known that it is built like H and is looser for improbable
    tokens; here it has the form of H with the signs reversed, and k counts from 0. ε, the slopes
    and the intercepts were not published, so they have no default.

    Args:
      total_steps: T, length of the schedule. A run with fewer `steps` ends within it; one with more
        stays at its end.
      clip: ε, 0 < ε < 1.
      slope: a of H, ≤ 0.
      intercept: b of H, > 0.
      low_slope: a of M, -b ≤ a ≤ 0.
      low_intercept: b of M, 0 < b < 1.

    Returns:
      A surrogate of scope "token" with a controller, whose coefficients are w⁺ and w⁻.

    Raises:
      ValueError: An argument is out of range.
    """

    def weights(left: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = left >= 0
        return jnp.where(first, left, 0), jnp.where(first, 0, 1 + left)

    ranges = _check(
        "flexible_clip_id", total_steps, clip, slope, intercept, low_slope, low_intercept
    )
    return _flexible(clip, *ranges, _by_progress(total_steps, weights))


def flexible_clip_did(
    total_steps: int,
    clip: float,
    slope: float,
    intercept: float,
    low_slope: float,
    low_intercept: float,
) -> Surrogate:
    """Flexible Entropy Control, schedule DID: decrease, increase, then decrease the
    entropy.

    k ≤ T / 2: w⁺ = 1 - λ, w⁻ = 0;   else: w⁺ = 1, w⁻ = 1 + λ

    Formula, source, arguments, result and errors as for `flexible_clip_id`.
    """

    def weights(left: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = left >= 0
        return jnp.where(first, 1 - left, 1), jnp.where(first, 0, 1 + left)

    ranges = _check(
        "flexible_clip_did", total_steps, clip, slope, intercept, low_slope, low_intercept
    )
    return _flexible(clip, *ranges, _by_progress(total_steps, weights))


def flexible_clip_od(
    total_steps: int,
    clip: float,
    slope: float,
    intercept: float,
    low_slope: float,
    low_intercept: float,
    floor: float = 0.2,
) -> Surrogate:
    """Flexible Entropy Control, schedule OD: oscillate between bounds that decay.

    H_min = φ H_init,   H_max = H_min + (H_init - H_min)(1 - k / T)
    s ← 1 if H̄ ≤ H_min, 0 if H̄ > H_max, else unchanged;   w⁺ = s, w⁻ = 1 - s

    H̄ is the mean entropy of the mini-batch from before the first update on its rollout, H_init
    that of the first mini-batch. Reconstructed: the statistic over the mini-batch, and s = 0 at the
    start. All else as for `flexible_clip_id`.

    Args:
      total_steps: As for `flexible_clip_id`.
      clip: As for `flexible_clip_id`.
      slope: As for `flexible_clip_id`.
      intercept: As for `flexible_clip_id`.
      low_slope: As for `flexible_clip_id`.
      low_intercept: As for `flexible_clip_id`.
      floor: φ, 0 < φ < 1.

    Returns:
      A surrogate of scope "token" with a controller of H_init and s.

    Raises:
      ValueError: An argument is out of range.
    """
    ranges = _check(
        "flexible_clip_od", total_steps, clip, slope, intercept, low_slope, low_intercept
    )
    require(0 < floor < 1, "flexible_clip_od.floor", floor, "a number > 0 and < 1")

    def init() -> dict[str, jax.Array]:
        nothing = {"started": jnp.bool_(False), "raising": jnp.bool_(False)}
        return nothing | {"initial_entropy": jnp.float32(0)}

    def update(
        state: dict[str, jax.Array], summary: BatchSummary
    ) -> tuple[dict[str, jax.Array], Coefficients]:
        initial = jnp.where(state["started"], state["initial_entropy"], summary.entropy)
        lowest = floor * initial
        highest = lowest + (initial - lowest) * (1 - _progress(summary, total_steps))
        kept = jnp.where(summary.entropy > highest, False, state["raising"])
        raising = jnp.where(summary.entropy <= lowest, True, kept)
        upper = raising.astype(jnp.float32)
        state = {"started": jnp.bool_(True), "raising": raising, "initial_entropy": initial}
        return state, {UPPER: upper, LOWER: 1 - upper}

    return _flexible(clip, *ranges, Controller(init, update))


RangeFn = Callable[[TokenStats], jax.Array]


def _upper_range(stats: TokenStats, slope: float, intercept: float) -> jax.Array:
    return (1 + intercept) / (1 - slope * jnp.exp(stats.old_log_probs)) - 1


def _lower_range(stats: TokenStats, slope: float, intercept: float) -> jax.Array:
    return 1 - (1 - intercept) / (1 + slope * jnp.exp(stats.old_log_probs))


def _check(
    who: str,
    total_steps: int,
    clip: float,
    slope: float,
    intercept: float,
    low_slope: float,
    low_intercept: float,
) -> tuple[RangeFn, RangeFn]:
    """Check the arguments, and return the two dynamic ranges."""
    require(total_steps >= 1, f"{who}.total_steps", total_steps, "a whole number >= 1")
    require(0 < clip < 1, f"{who}.clip", clip, "a number > 0 and < 1")
    require(intercept > 0, f"{who}.intercept", intercept, "a number > 0")
    require(0 < low_intercept < 1, f"{who}.low_intercept", low_intercept, "a number > 0 and < 1")
    _check_slope(f"{who}.slope", slope, "intercept", intercept)
    _check_slope(f"{who}.low_slope", low_slope, "low_intercept", low_intercept)
    return (
        lambda stats: _upper_range(stats, slope, intercept),
        lambda stats: _lower_range(stats, low_slope, low_intercept),
    )


def _check_slope(who: str, slope: float, name: str, intercept: float) -> None:
    """Check that no range is negative: it would clip a policy that has not changed."""
    allowed = f"a number from -{name} ({-intercept}) to 0"
    require(-intercept <= slope <= 0, who, slope, allowed)


def _flexible(
    clip: float, upper_range: RangeFn, lower_range: RangeFn, controller: Controller
) -> Surrogate:
    def mixed(stats: TokenStats, name: str, dynamic: jax.Array) -> jax.Array:
        weight = require_coefficient("flexible clip", stats, name)
        return weight * dynamic + (1 - weight) * clip

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        upper = 1 + mixed(stats, UPPER, upper_range(stats))
        lower = 1 - mixed(stats, LOWER, lower_range(stats))
        return clipped_loss(ratio_of(stats), advantages, lower, upper)

    return Surrogate(loss, "token", controller)


def _progress(summary: BatchSummary, total_steps: int) -> jax.Array:
    return jnp.minimum(summary.step, total_steps) / total_steps


def _by_progress(
    total_steps: int, weights: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
) -> Controller:
    """Coefficients that depend on the step alone, without a state; weights: λ -> (w⁺, w⁻)."""

    def update(state: tuple[()], summary: BatchSummary) -> tuple[tuple[()], Coefficients]:
        upper, lower = weights(1 - 2 * _progress(summary, total_steps))
        return state, {UPPER: upper, LOWER: lower}

    return Controller(tuple, update)
