"""Surrogates whose ratio is one of the whole row, or of its part so far.

The ratio of a token is a value that depends on other tokens, times πₜ / sg(πₜ), which is 1 and has
the gradient ∇log π(oₜ). So a row as a whole gets the gradient of its ratio, and every token keeps
its own share of it, which an advantage or a weight of its own can scale.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.clipping import check_clip_range, clipped_loss
from entropy_rl.losses.inputs import log_ratio, rounded_up
from entropy_rl.losses.surrogate import ClipMasks, Surrogate
from entropy_rl.masked import masked_mean
from entropy_rl.types import TokenStats


def _with_gradient_of(log_values: jax.Array, own: jax.Array) -> jax.Array:
    """exp(log_values) in value, with the gradient of exp(own) scaled to it: the others' is left
    out.
    """
    return jnp.exp(jax.lax.stop_gradient(log_values)) * jnp.exp(own - jax.lax.stop_gradient(own))


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Surrogate:
    """PPO with the length-normalized ratio of the whole row.

    sᵢ = (π(oᵢ) / π_old(oᵢ))^(1 / |oᵢ|) = exp(mean_t (log πᵢₜ - log π_oldᵢₜ))
    sᵢₜ = sg(sᵢ) πᵢₜ / sg(πᵢₜ)
    Lᵢₜ = max(-sᵢₜ Aᵢₜ, -clip(sᵢₜ, 1 - ε_low, 1 + ε_high) Aᵢₜ)

    With one advantage for each row and the aggregation "sequence-mean", which it is made for, it is
    GSPO; with one for each token, GSPO-token. Source: Eq. 5-7 and §4.3 of
    https://arxiv.org/abs/2507.18071, the ranges from its §5.

    Args:
      clip_low: ε_low, 0 < ε_low < 1.
      clip_high: ε_high > 0.

    Returns:
      A surrogate of scope "row".

    Raises:
      ValueError: An argument is out of range.
    """
    check_clip_range("gspo", clip_low, clip_high)

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        of_tokens = log_ratio(stats.log_probs, stats.old_log_probs)
        of_row = masked_mean(of_tokens, stats.mask, axis=1, keepdims=True)
        ratio = _with_gradient_of(of_row, stats.log_probs)
        return clipped_loss(ratio, advantages, 1 - clip_low, 1 + clip_high)

    return Surrogate(loss, "row")


def gmpo(clip_low: float = 0.4, clip_high: float = 0.4) -> Surrogate:
    """The geometric mean of the clipped ratios of a row, in place of their arithmetic mean.

    xᵢₜ = sign(Aᵢₜ) min(sign(Aᵢₜ) dᵢₜ, sign(Aᵢₜ) clip(dᵢₜ, -ε_low, ε_high)),   dᵢₜ = log πᵢₜ - log
    π_oldᵢₜ Lᵢₜ = -Aᵢₜ exp(mean_t xᵢₜ)

    The range is one of the log-ratio: (e^-0.4, e^0.4) of the ratio by default. It is the method
    with one advantage for each row and the aggregation "sequence-mean", which it is made for.
    Source: §3 and §4 of https://arxiv.org/abs/2507.20673, as in veRL (`geo_mean`).

    Args:
      clip_low: ε_low > 0.
      clip_high: ε_high > 0.

    Returns:
      A surrogate of scope "row".

    Raises:
      ValueError: An argument is out of range.
    """
    require(clip_low > 0, "gmpo.clip_low", clip_low, "numbers > 0")
    require(clip_high > 0, "gmpo.clip_high", clip_high, "numbers > 0")

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        d, sign = log_ratio(stats.log_probs, stats.old_log_probs), jnp.sign(advantages)
        x = sign * jnp.minimum(sign * d, sign * jnp.clip(d, -clip_low, clip_high))
        ratio = _with_gradient_of(masked_mean(x, stats.mask, axis=1, keepdims=True), x)
        masks = ClipMasks((sign < 0) & (d < -clip_low), (sign > 0) & (d > clip_high))
        return -ratio * advantages, masks

    return Surrogate(loss, "row")


def s_trace(
    decay: float, fraction: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.28
) -> Surrogate:
    """Experimental: PPO with a ratio that fades over the tokens before.

    log wₜ = Σ_{k≤t} λ^(t-k) m_k d_k / Σ_{k≤t} λ^(t-k) m_k,   d_k = log π_k - log π_old_k

    with m_k = 1 for the share of the row's tokens that had the highest entropy. λ = 0 is PPO, if
    every token is in the trace; with λ = 1 the ratio at the last token is that of GSPO. A token
    before the first of the trace has w = 1.

    S-trace (https://arxiv.org/abs/2605.05965) is known to be an eligibility trace that approximates
    the ratio of the past, in which tokens of low entropy are left out, and of which GSPO is a case.
    Its formula was not found: this one is reconstructed, and so are its defaults. Results with it
    are not results of S-trace.

    Args:
      decay: 0 ≤ λ ≤ 1.
      fraction: Share of tokens in the trace, 0 < fraction ≤ 1; rounded up.
      clip_low: ε_low, 0 < ε_low < 1.
      clip_high: ε_high > 0.

    Returns:
      A surrogate of scope "row".

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 <= decay <= 1, "s_trace.decay", decay, "0 <= decay <= 1")
    require(0 < fraction <= 1, "s_trace.fraction", fraction, "0 < fraction <= 1")
    check_clip_range("s_trace", clip_low, clip_high)

    def faded(x: jax.Array) -> jax.Array:
        """Σ_{k≤t} λ^(t-k) x_k along a row."""

        def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]):
            return left[0] * right[0], left[1] * right[0] + right[1]

        return jax.lax.associative_scan(join, (jnp.full(x.shape, decay), x), axis=1)[1]

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        entropy = jnp.where(stats.mask, stats.old_entropy, -jnp.inf)
        place = jnp.argsort(jnp.argsort(-entropy, axis=1, stable=True), axis=1)
        length = jnp.sum(stats.mask, axis=1, keepdims=True)
        traced = (stats.mask & (place < rounded_up(fraction, length))).astype(jnp.float32)
        total = faded(traced)
        d = faded(traced * log_ratio(stats.log_probs, stats.old_log_probs))
        ratio = _with_gradient_of(d / jnp.where(total > 0, total, 1), stats.log_probs)
        return clipped_loss(ratio, advantages, 1 - clip_low, 1 + clip_high)

    return Surrogate(loss, "row")
