"""Selections by the entropy of the policy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.inputs import rounded_up
from entropy_rl.losses.token_weights import TokenWeighting, check_band, top
from entropy_rl.types import TokenStats


def forking_tokens(fraction: float = 0.2) -> TokenWeighting:
    """Learns from the tokens with the highest entropy alone.

    wₜ = n / k where Hₜ is one of the k = ⌈fraction · n⌉ highest of the n tokens of the mini-batch,
    else 0

    The factor n / k makes the kept tokens the denominator of the aggregation "token-mean", as in
    the source: (1 / n) Σ w L = (1 / k) Σ_kept L. H is the entropy of the policy that is being
      updated.

    Source: Eq. 6 of https://arxiv.org/abs/2506.01939, the count as in its code,
    https://github.com/Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR (`entropy_top_ratio`), where it is
    one of each micro-batch.

    Args:
      fraction: Share of tokens that is kept, 0 < fraction ≤ 1.

    Returns:
      A token_weighting of scope "batch".

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 < fraction <= 1, "forking_tokens.fraction", fraction, "0 < fraction <= 1")

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        tokens = jnp.sum(stats.mask)
        kept = rounded_up(fraction, tokens)
        return top(stats.entropy, stats.mask, kept) * (tokens / jnp.maximum(kept, 1))

    return TokenWeighting(select, "batch")


def erc(low: float = 0.95, high: float = 1.05) -> TokenWeighting:
    """Entropy ratio clipping: no gradient from a token where the entropy has moved too far.

    wₜ = 1[low < (Hₜ + ε) / (H_oldₜ + ε) < high],   ε = 1e-8

    The ratio stands for all tokens of the vocabulary, that of PPO for the sampled one; both clips
    act. Source: https://arxiv.org/abs/2512.05591, the range from the scripts of
    https://github.com/Kwai-Klear/ERC. There the loss that is reported, unlike its gradient, keeps
    the tokens that are left out. The range is narrow: with entropies recorded by a sampler of lower
    precision, rounding alone can leave it.

    Args:
      low: Lower bound, 0 ≤ low < 1.
      high: Upper bound > 1.

    Returns:
      A token_weighting of scope "token".

    Raises:
      ValueError: An argument is out of range.
    """
    check_band("erc", low, high)

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        # The lower bound is for rounding, which can leave an entropy of 0 a hair below 0.
        new, old = (jnp.maximum(h, 0) + 1e-8 for h in (stats.entropy, stats.old_entropy))
        return ((new / old > low) & (new / old < high)).astype(jnp.float32)

    return TokenWeighting(select, "token")
