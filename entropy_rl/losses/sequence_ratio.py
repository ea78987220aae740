"""Surrogates with a sequence-level ratio.

The ratio of a token is a value that depends on other tokens, times πₜ / sg(πₜ), which is 1 and has
the gradient ∇log π(oₜ). So the gradients of the tokens of a sequence add up to that of its ratio,
and each can be scaled by the token's own advantage or weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.clipping import check_clip_range, clipped_loss
from entropy_rl.losses.inputs import log_ratio
from entropy_rl.losses.surrogate import ClipMasks, Surrogate
from entropy_rl.masked import masked_mean
from entropy_rl.types import TokenStats


def with_gradient_of(log_values: jax.Array, own: jax.Array) -> jax.Array:
    """exp(log_values) in value, with the gradient of exp(own) scaled to that value."""
    return jnp.exp(jax.lax.stop_gradient(log_values)) * jnp.exp(own - jax.lax.stop_gradient(own))


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Surrogate:
    """GSPO: PPO with the length-normalized ratio of the sequence.

    sᵢ = (π(oᵢ) / π_old(oᵢ))^(1 / |oᵢ|) = exp(mean_t (log πᵢₜ - log π_oldᵢₜ))
    sᵢₜ = sg(sᵢ) πᵢₜ / sg(πᵢₜ)
    Lᵢₜ = max(-sᵢₜ Aᵢₜ, -clip(sᵢₜ, 1 - ε_low, 1 + ε_high) Aᵢₜ)

    With one advantage for each sequence and the aggregation "sequence-mean" it is GSPO; with one
    for each token, GSPO-token. Source: Eq. 5-7 and §4.3 of
    https://arxiv.org/abs/2507.18071, the ranges from its §5.

    Args:
      clip_low: ε_low, 0 < ε_low < 1.
      clip_high: ε_high > 0.

    Returns:
      A surrogate of scope "sequence".

    Raises:
      ValueError: An argument is out of range.
    """
    check_clip_range("gspo", clip_low, clip_high)

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        of_tokens = log_ratio(stats.log_probs, stats.old_log_probs)
        of_row = masked_mean(of_tokens, stats.mask, axis=1, keepdims=True)
        ratio = with_gradient_of(of_row, stats.log_probs)
        return clipped_loss(ratio, advantages, 1 - clip_low, 1 + clip_high)

    return Surrogate(loss, "sequence")


def gmpo(clip_low: float = 0.4, clip_high: float = 0.4) -> Surrogate:
    """GMPO: the geometric mean of the clipped ratios of a sequence, not their arithmetic mean.

    dᵢₜ = log πᵢₜ - log π_oldᵢₜ
    xᵢₜ = sign(Aᵢₜ) min(sign(Aᵢₜ) dᵢₜ, sign(Aᵢₜ) clip(dᵢₜ, -ε_low, ε_high))
    Lᵢₜ = -Aᵢₜ exp(mean_t xᵢₜ)

    The range is one of the log-ratio: (e^-0.4, e^0.4) of the ratio by default. It is GMPO with one
    advantage for each sequence and the aggregation "sequence-mean". Source: §3 and §4 of
    https://arxiv.org/abs/2507.20673, as in veRL (`geo_mean`).

    Args:
      clip_low: ε_low > 0.
      clip_high: ε_high > 0.

    Returns:
      A surrogate of scope "sequence".

    Raises:
      ValueError: An argument is out of range.
    """
    require(clip_low > 0, "gmpo.clip_low", clip_low, "a number > 0")
    require(clip_high > 0, "gmpo.clip_high", clip_high, "a number > 0")

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        d, sign = log_ratio(stats.log_probs, stats.old_log_probs), jnp.sign(advantages)
        x = sign * jnp.minimum(sign * d, sign * jnp.clip(d, -clip_low, clip_high))
        ratio = with_gradient_of(masked_mean(x, stats.mask, axis=1, keepdims=True), x)
        masks = ClipMasks((sign < 0) & (d < -clip_low), (sign > 0) & (d > clip_high))
        return -ratio * advantages, masks

    return Surrogate(loss, "sequence")
