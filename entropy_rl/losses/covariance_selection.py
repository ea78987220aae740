"""Token weights by the covariance of advantage and log-prob: Clip-Cov and KL-Cov.

To first order the entropy of a softmax policy decreases by this covariance in an update
(https://arxiv.org/abs/2505.22617).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.inputs import require_sampler
from entropy_rl.losses.surrogate import Surrogate
from entropy_rl.losses.token_weights import TokenWeighting, TokenWeights, top
from entropy_rl.masked import masked_center
from entropy_rl.types import TokenStats


def clip_cov(
    surrogate: Surrogate, fraction: float = 2e-4, low: float = 1.0, high: float = 5.0, seed: int = 0
) -> TokenWeighting:
    """Clip-Cov: no gradient from a small random subset of the tokens of high covariance.

    wₜ = 0 for max(1, ⌊fraction · n⌋) random ones of the tokens with low < covₜ < high that the
    surrogate does not clip, and 1 for the others;   covₜ = (Aₜ - mean(A)) (log π(oₜ) - mean(log π))

    with means and n over the tokens of the mini-batch. Source: https://arxiv.org/abs/2505.22617, as
    in veRL (`clip_cov`), where the recipe for 7B models has ε_high = 1.

    The random choice does not depend on how the mini-batch is split: the key of a token is folded
    with the bits of its sequence's log-probs, as recorded by the sampler, and with its position.
    If these log-probs differ in the last digits, as on another mesh, so does the choice.

    Args:
      surrogate: That of the loss, for its clip masks; a config does not give it.
      fraction: Fraction of all tokens, 0 < fraction ≤ 1.
      low: Lower bound of the covariance.
      high: Upper bound.
      seed: Of the random choice.

    Returns:
      A token weighting of scope "batch".

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 < fraction <= 1, "clip_cov.fraction", fraction, "a number > 0 and <= 1")
    require(low < high, "clip_cov.low", low, f"a number < high ({high})")

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        recorded = require_sampler("clip_cov", stats)
        covariance = _covariance(advantages, stats)
        clipped = surrogate(advantages, stats)[1]
        candidates = (
            stats.mask & ~clipped.low & ~clipped.high & (low < covariance) & (covariance < high)
        )
        left_out = top(_random_numbers(seed, recorded), candidates, _count(fraction, stats))
        return (~left_out).astype(jnp.float32)

    return TokenWeighting(select, "batch")


def kl_cov(fraction: float = 2e-4, coef: float = 1.0) -> TokenWeighting:
    """KL-Cov: a KL penalty on the tokens of the highest covariance.

    Lₜ ← Lₜ + coef |log π(oₜ) - log π_old(oₜ)| for the max(1, ⌊fraction · n⌋) tokens with the
    highest covₜ, that of `clip_cov`

    Made for the surrogate `unclipped`. Source: https://arxiv.org/abs/2505.22617, as in veRL
    (`kl_cov`); fraction = 2e-3 in the authors' recipe.

    Args:
      fraction: Fraction of all tokens, 0 < fraction ≤ 1.
      coef: Weight ≥ 0 of the term.

    Returns:
      A token weighting of scope "batch".

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 < fraction <= 1, "kl_cov.fraction", fraction, "a number > 0 and <= 1")
    require(0 <= coef < math.inf, "kl_cov.coef", coef, "a number >= 0")

    def select(advantages: jax.Array, stats: TokenStats) -> TokenWeights:
        held = top(_covariance(advantages, stats), stats.mask, _count(fraction, stats))
        return TokenWeights(jnp.ones_like(advantages), coef * held)

    return TokenWeighting(select, "batch")


def _covariance(advantages: jax.Array, stats: TokenStats) -> jax.Array:
    return masked_center(advantages, stats.mask) * masked_center(stats.log_probs, stats.mask)


def _count(fraction: float, stats: TokenStats) -> jax.Array:
    # The factor corrects float32 rounding: 0.29 · 100 is slightly below 29.
    return jnp.maximum(jnp.floor(fraction * jnp.sum(stats.mask, dtype=jnp.float32) * (1 + 3e-7)), 1)


def _random_numbers(seed: int, recorded: jax.Array) -> jax.Array:
    """A uniform number for each token, from its position and the log-probs of its sequence."""
    key, places = jax.random.key(seed), jnp.arange(recorded.shape[1])
    bits = jax.lax.bitcast_convert_type(recorded, jnp.uint32)
    # A sum of integers does not depend on the order, nor on padding.
    rows = jnp.sum(bits, axis=1, dtype=jnp.uint32)

    def of_row(row: jax.Array) -> jax.Array:
        row_key = jax.random.fold_in(key, row)
        return jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(row_key, t)))(places)

    return jax.vmap(of_row)(rows)
