"""Surrogates of the token-level ratio: unclipped, and clipped as in PPO."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.inputs import log_ratio
from entropy_rl.losses.surrogate import ClipMasks, Surrogate, no_clips
from entropy_rl.types import TokenStats


def ratio_of(stats: TokenStats) -> jax.Array:
    """ρₜ = π(oₜ) / π_old(oₜ), f32[B, N], with the gradient ρₜ ∇log π(oₜ)."""
    return jnp.exp(log_ratio(stats.log_probs, stats.old_log_probs))


def clipped_loss(
    ratio: jax.Array,
    advantages: jax.Array,
    lower: jax.Array | float,
    upper: jax.Array | float,
    dual_clip: float | None = None,
) -> tuple[jax.Array, ClipMasks]:
    """The clipped loss max(-ρ A, -clip(ρ, lower, upper) A), at most -c A where A < 0.

    Args:
      ratio: ρ f32[B, N].
      advantages: A f32[B, N].
      lower: The lower bound of the ratio.
      upper: The upper bound.
      dual_clip: c; None for none.

    Returns:
      (loss f32[B, N], masks of the tokens at a bound).
    """
    loss = jnp.maximum(-ratio * advantages, -jnp.clip(ratio, lower, upper) * advantages)
    positive, negative = advantages > 0, advantages < 0
    dual = None
    if dual_clip is not None:
        dual = negative & (ratio > dual_clip)
        loss = jnp.where(negative, jnp.minimum(loss, -dual_clip * advantages), loss)
    return loss, ClipMasks(negative & (ratio < lower), positive & (ratio > upper), dual)


def check_clip_range(
    who: str, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> None:
    """Check 0 < ε_low < 1, ε_high > 0 and c > 1.

    Raises:
      ValueError: One is out of range.
    """
    require(0 < clip_low < 1, f"{who}.clip_low", clip_low, "a number > 0 and < 1")
    require(clip_high > 0, f"{who}.clip_high", clip_high, "a number > 0")
    require(
        dual_clip is None or dual_clip > 1, f"{who}.dual_clip", dual_clip, "null or a number > 1"
    )


def unclipped() -> Surrogate:
    """The importance-weighted policy gradient: Lₜ = -ρₜ Aₜ.

    On-policy it is REINFORCE with a baseline. Off-policy the ratio has no bound; use it with
    `kl_cov`.

    Returns:
      A surrogate of scope "token".
    """

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        return -ratio_of(stats) * advantages, no_clips(advantages)

    return Surrogate(loss, "token")


def ppo_clip(
    clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float | None = None
) -> Surrogate:
    """The clipped surrogate of PPO with two clip ranges, and the dual clip.

    Lₜ = max(-ρₜ Aₜ, -clip(ρₜ, 1 - ε_low, 1 + ε_high) Aₜ)
    Lₜ ← min(Lₜ, -c Aₜ) where Aₜ < 0, with a dual clip

    Source: PPO, Eq. 7 of https://arxiv.org/abs/1707.06347; ε_high > ε_low: DAPO, §3.1 of
    https://arxiv.org/abs/2503.14476; dual clip: https://arxiv.org/abs/1912.09729.

    Args:
      clip_low: ε_low, 0 < ε_low < 1.
      clip_high: ε_high > 0; 0.28 in DAPO, ε_low in PPO.
      dual_clip: c > 1; None for none.

    Returns:
      A surrogate of scope "token".

    Raises:
      ValueError: An argument is out of range.
    """
    check_clip_range("ppo_clip", clip_low, clip_high, dual_clip)

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        return clipped_loss(ratio_of(stats), advantages, 1 - clip_low, 1 + clip_high, dual_clip)

    return Surrogate(loss, "token")
