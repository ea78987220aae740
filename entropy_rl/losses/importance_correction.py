"""Corrections of the mismatch between trainer and sampler: importance weights and rejection.

    dₜ = log π_old(oₜ) - log π_sampler(oₜ)

for the same parameters; the ratio of the surrogate has π_old in its denominator. They require
`old_log_probs: trainer`: with the log-probs of the sampler d is 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.inputs import MAX_LOG_RATIO, log_ratio, require_sampler
from entropy_rl.losses.token_weights import TokenWeighting, check_band
from entropy_rl.masked import masked_mean, masked_sum
from entropy_rl.types import TokenStats


def token_tis(cap: float = 2.0) -> TokenWeighting:
    """Truncated importance weight of each token: wₜ = min(exp(dₜ), C).

    Source: https://fengyao.notion.site/off-policy-rl; C = 2 in veRL and slime.

    Args:
      cap: C > 0.

    Returns:
      A token weighting of scope "token".

    Raises:
      ValueError: An argument is out of range.
    """
    require(cap > 0, "token_tis.cap", cap, "a number > 0")

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        return jnp.minimum(jnp.exp(_difference("token_tis", stats)), cap)

    return TokenWeighting(select, "token", corrects_sampler=True)


def sequence_tis(cap: float = 2.0) -> TokenWeighting:
    """Truncated importance weight of the sequence, for each of its tokens: w = min(exp(Σ_t dₜ), C).

    Unbiased but for the cap; its variance grows with the length. Source: veRL,
    docs/algo/rollout_corr_math.md, which names 2 to 10 for C.

    Args:
      cap: C > 0.

    Returns:
      A token weighting of scope "sequence".

    Raises:
      ValueError: An argument is out of range.
    """
    require(cap > 0, "sequence_tis.cap", cap, "a number > 0")

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        total = masked_sum(_difference("sequence_tis", stats), stats.mask, axis=1, keepdims=True)
        weight = jnp.minimum(jnp.exp(jnp.clip(total, -MAX_LOG_RATIO, MAX_LOG_RATIO)), cap)
        return jnp.broadcast_to(weight, stats.mask.shape)

    return TokenWeighting(select, "sequence", corrects_sampler=True)


def icepop(low: float = 0.5, high: float = 5.0) -> TokenWeighting:
    """IcePop: the importance weight of a token within a range, and else no gradient from it.

    wₜ = exp(dₜ) where low ≤ exp(dₜ) ≤ high, else 0

    Source: IcePop, https://ringtech.notion.site/icepop, as in slime, OpenRLHF and veRL
    (`rollout_is_threshold: "0.5_5.0"`), with the range of the last two.

    Args:
      low: Lower bound, 0 ≤ low < 1.
      high: Upper bound > 1.

    Returns:
      A token weighting of scope "token".

    Raises:
      ValueError: An argument is out of range.
    """
    check_band("icepop", low, high)

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        weight = jnp.exp(_difference("icepop", stats))
        return jnp.where((low <= weight) & (weight <= high), weight, 0)

    return TokenWeighting(select, "token", corrects_sampler=True)


def geometric_rejection(low: float = 0.999, high: float = 1.001) -> TokenWeighting:
    """Geometric rejection: no gradient from sequences with a large mean log-prob difference.

    w = 1 for all tokens of a sequence with low ≤ exp(mean_t dₜ) ≤ high, else 0

    The mean over the sequence makes it independent of the length. It is a rejection and no
    importance weight. Source: the text of veRL, docs/algo/rollout_corr_math.md, with the range of
    its preset `decoupled_geo_rs`. veRL's code differs in two points: it bounds exp(-mean_t dₜ),
    which matters for a range that is not symmetric in the logarithm, and it removes rejected
    sequences from the response mask, so that they are not in the normalizer of the loss nor in its
    KL and entropy terms. Here the normalizer counts them.

    Args:
      low: Lower bound, 0 ≤ low < 1.
      high: Upper bound > 1.

    Returns:
      A token weighting of scope "sequence".

    Raises:
      ValueError: An argument is out of range.
    """
    check_band("geometric_rejection", low, high)

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        difference = _difference("geometric_rejection", stats)
        mean = jnp.exp(masked_mean(difference, stats.mask, axis=1, keepdims=True))
        return jnp.broadcast_to((low <= mean) & (mean <= high), stats.mask.shape).astype(
            jnp.float32
        )

    return TokenWeighting(select, "sequence", corrects_sampler=True)


def _difference(who: str, stats: TokenStats) -> jax.Array:
    return log_ratio(stats.old_log_probs, require_sampler(who, stats))
