"""Surrogates with a soft clip: a token beyond the bounds keeps some gradient."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.clipping import check_clip_range, ratio_of
from entropy_rl.losses.surrogate import ClipMasks, Surrogate, no_clips
from entropy_rl.types import TokenStats


def cispo(max_ratio: float = 5.0, min_ratio: float = 0.0) -> Surrogate:
    """CISPO: policy gradient with a clipped importance weight, a constant of the gradient.

    Lₜ = -sg(clip(ρₜ, ρ_min, ρ_max)) Aₜ log π(oₜ)

    No token loses its gradient. Source: MiniMax-M1, https://arxiv.org/abs/2506.13585, which has no
    lower bound (there ρ_max = 1 + ε_high) and does not give the upper one; 5 is that of ScaleRL,
    https://arxiv.org/abs/2510.13786, according to TRL.

    Args:
      max_ratio: ρ_max ≥ 1.
      min_ratio: 0 ≤ ρ_min ≤ 1.

    Returns:
      A surrogate of scope "token". Its masks: A > 0 above the upper bound, A < 0 below the lower
      one.

    Raises:
      ValueError: An argument is out of range.
    """
    require(max_ratio >= 1, "cispo.max_ratio", max_ratio, "a number >= 1")
    require(0 <= min_ratio <= 1, "cispo.min_ratio", min_ratio, "a number from 0 to 1")

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        ratio = jax.lax.stop_gradient(ratio_of(stats))
        masks = ClipMasks(
            (advantages < 0) & (ratio < min_ratio), (advantages > 0) & (ratio > max_ratio)
        )
        return -jnp.clip(ratio, min_ratio, max_ratio) * advantages * stats.log_probs, masks

    return Surrogate(loss, "token")


def sapo(tau_pos: float = 1.0, tau_neg: float = 1.05) -> Surrogate:
    """SAPO: a sigmoid gate in place of the clip.

    Lₜ = -Aₜ (4 / τ) σ(τ (ρₜ - 1)),   τ = τ_pos where Aₜ > 0, else τ_neg

    Its gradient is that of -ρₜ Aₜ times 4 σ (1 - σ), which is 1 at ρ = 1 and decays on both sides.
    Source: SAPO, https://arxiv.org/abs/2511.20347, as in veRL and TRL.

    Args:
      tau_pos: τ_pos > 0.
      tau_neg: τ_neg > 0; larger by default, as negative advantages are less stable.

    Returns:
      A surrogate of scope "token". It clips nothing.

    Raises:
      ValueError: An argument is out of range.
    """
    for name, tau in (("tau_pos", tau_pos), ("tau_neg", tau_neg)):
        require(0 < tau < math.inf, f"sapo.{name}", tau, "a number > 0")

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        tau = jnp.where(advantages > 0, tau_pos, tau_neg)
        gate = jax.nn.sigmoid(tau * (ratio_of(stats) - 1)) * 4 / tau
        return -gate * advantages, no_clips(advantages)

    return Surrogate(loss, "token")


def dppo_tv(
    divergence_low: float = 0.2, divergence_high: float = 0.2, max_ratio: float = 20.0
) -> Surrogate:
    """DPPO: a bound on the change of a token's probability in place of one on its ratio.

    Lₜ = -sg(min(ρₜ, c)) Aₜ vₜ log π(oₜ)
    vₜ = 1[π(oₜ) - π_old(oₜ) ≤ δ_high] where Aₜ > 0, else 1[π(oₜ) - π_old(oₜ) ≥ -δ_low]

    The difference is the total variation of the two distributions over {oₜ, any other token}.
    Source: DPPO-Binary-TV, https://arxiv.org/abs/2602.04879, formula as in veRL (`dppo_tv`), δ as
    in prime-rl. c = 20 is the default of that function; veRL's actor config (`clip_ratio_c`)
    overrides it with 3.

    Args:
      divergence_low: 0 < δ_low ≤ 1.
      divergence_high: 0 < δ_high ≤ 1.
      max_ratio: c ≥ 1.

    Returns:
      A surrogate of scope "token". Its masks: the tokens with v = 0.

    Raises:
      ValueError: An argument is out of range.
    """
    for name, value in (("divergence_low", divergence_low), ("divergence_high", divergence_high)):
        require(0 < value <= 1, f"dppo_tv.{name}", value, "a number > 0 and <= 1")
    require(max_ratio >= 1, "dppo_tv.max_ratio", max_ratio, "a number >= 1")

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        ratio = jax.lax.stop_gradient(jnp.minimum(ratio_of(stats), max_ratio))
        moved = jax.lax.stop_gradient(jnp.exp(stats.log_probs) - jnp.exp(stats.old_log_probs))
        positive = advantages > 0
        masks = ClipMasks(
            ~positive & (moved < -divergence_low), positive & (moved > divergence_high)
        )
        weight = jnp.where(masks.low | masks.high, 0, ratio)
        return -weight * advantages * stats.log_probs, masks

    return Surrogate(loss, "token")


def ce_gppo(
    b1: float = 0.75,
    b2: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> Surrogate:
    """CE-GPPO: PPO in which clipped tokens keep a gradient that does not grow with the ratio.

    Lₜ = -β₁ (1 - ε_low) (ρₜ / sg(ρₜ)) Aₜ     where ρₜ < 1 - ε_low and Aₜ < 0
    Lₜ = -β₂ (1 + ε_high) (ρₜ / sg(ρₜ)) Aₜ    where ρₜ > 1 + ε_high and Aₜ > 0
    Lₜ = -ρₜ Aₜ                              elsewhere, at most -c Aₜ where Aₜ < 0, with a dual clip

    β₁ weights tokens whose ratio is below the range, β₂ those whose ratio is above it; β₁ = β₂ = 0
    has the gradient of PPO. Source: CE-GPPO,
    https://arxiv.org/abs/2509.20712, as in https://github.com/Kwai-Klear/CE-GPPO; β₁ = 0.75, β₂ = 1
    are its values for 7B models, 0.5 and 1 those for 1.5B. That code has no clamp of the log-ratio;
    here a token beyond ±20 has no gradient.

    Args:
      b1: β₁ ≥ 0.
      b2: β₂ ≥ 0.
      clip_low: ε_low, 0 < ε_low < 1.
      clip_high: ε_high > 0.
      dual_clip: c > 1; None for none.

    Returns:
      A surrogate of scope "token". Its masks: the tokens beyond the bounds, whose gradient is
      scaled.

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 <= b1 < math.inf, "ce_gppo.b1", b1, "a number >= 0")
    require(0 <= b2 < math.inf, "ce_gppo.b2", b2, "a number >= 0")
    check_clip_range("ce_gppo", clip_low, clip_high, dual_clip)

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        ratio, positive, negative = ratio_of(stats), advantages > 0, advantages < 0
        low, high = negative & (ratio < 1 - clip_low), positive & (ratio > 1 + clip_high)
        dual = None if dual_clip is None else negative & (ratio > dual_clip)
        one = ratio / jax.lax.stop_gradient(ratio)
        ratio = jnp.where(low, b1 * (1 - clip_low) * one, ratio)
        ratio = jnp.where(high, b2 * (1 + clip_high) * one, ratio)
        if dual is not None:
            ratio = jnp.where(dual, dual_clip, ratio)
        return -ratio * advantages, ClipMasks(low, high, dual)

    return Surrogate(loss, "token")


def gppo(
    clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float | None = None
) -> Surrogate:
    """GPPO: `ce_gppo` with β₁ = β₂ = 1; clipped tokens have the gradient of a token at the bound.

    Source: https://arxiv.org/abs/2508.07629, as in https://github.com/Kwai-Klear/ERC (`gppo_erc`).
    Arguments, result and errors as for `ce_gppo`.
    """
    check_clip_range("gppo", clip_low, clip_high, dual_clip)
    return ce_gppo(1.0, 1.0, clip_low, clip_high, dual_clip)
