"""S-trace, reconstructed: PPO with a ratio that decays over the preceding tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.clipping import check_clip_range, clipped_loss
from entropy_rl.losses.inputs import log_ratio, rounded_up
from entropy_rl.losses.sequence_ratio import with_gradient_of
from entropy_rl.losses.surrogate import ClipMasks, Surrogate
from entropy_rl.types import TokenStats


def s_trace(
    decay: float, fraction: float = 1.0, clip_low: float = 0.2, clip_high: float = 0.28
) -> Surrogate:
    """S-trace, reconstructed and experimental: PPO with a decaying trace of ratios.

    log wₜ = Σ_{k≤t} λ^(t-k) m_k d_k / Σ_{k≤t} λ^(t-k) m_k,   d_k = log π_k - log π_old_k

    with t and k among the tokens that count, so that the observations of an episode are no steps,
    and m_k = 1 for the `fraction` of the tokens of the sequence that had the highest entropy. λ = 0
    is PPO, if every token is in the trace; with λ = 1 the ratio at the last token is that of GSPO.
    A token before the first of the trace has w = 1.

    S-trace (https://arxiv.org/abs/2605.05965) is known to be an eligibility trace that approximates
    the ratio of the past, in which tokens of low entropy are left out, and of which GSPO is a case.
    Its formula was not found: this one is reconstructed, and so are its defaults. Results with it
    are not results of S-trace.

    Args:
      decay: 0 ≤ λ ≤ 1.
      fraction: Fraction of the tokens in the trace, 0 < fraction ≤ 1; rounded up.
      clip_low: ε_low, 0 < ε_low < 1.
      clip_high: ε_high > 0.

    Returns:
      A surrogate of scope "sequence".

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 <= decay <= 1, "s_trace.decay", decay, "a number from 0 to 1")
    require(0 < fraction <= 1, "s_trace.fraction", fraction, "a number > 0 and <= 1")
    check_clip_range("s_trace", clip_low, clip_high)

    def faded(x: jax.Array, mask: jax.Array) -> jax.Array:
        """Σ_{k≤t} λ^(t-k) x_k along the tokens on the mask of a sequence."""

        def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]):
            return left[0] * right[0], left[1] * right[0] + right[1]

        return jax.lax.associative_scan(join, (jnp.where(mask, decay, 1.0), x), axis=1)[1]

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        entropy = jnp.where(stats.mask, stats.old_entropy, -jnp.inf)
        place = jnp.argsort(jnp.argsort(-entropy, axis=1, stable=True), axis=1)
        length = jnp.sum(stats.mask, axis=1, keepdims=True)
        traced = (stats.mask & (place < rounded_up(fraction, length))).astype(jnp.float32)
        total = faded(traced, stats.mask)
        d = faded(traced * log_ratio(stats.log_probs, stats.old_log_probs), stats.mask)
        ratio = with_gradient_of(d / jnp.where(total > 0, total, 1), stats.log_probs)
        return clipped_loss(ratio, advantages, 1 - clip_low, 1 + clip_high)

    return Surrogate(loss, "sequence")
