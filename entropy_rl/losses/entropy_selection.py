"""Token weights by the entropy of the policy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.inputs import rounded_up
from entropy_rl.losses.token_weights import TokenWeighting, check_band, top
from entropy_rl.types import TokenStats


def forking_tokens(fraction: float = 0.2) -> TokenWeighting:
    """Forking tokens (80/20): train only on the tokens with the highest entropy.

    wₜ = n / k where Hₜ is one of the k = ⌈fraction · n⌉ highest of the n tokens of the mini-batch,
    else 0

    The factor n / k makes the selected tokens the denominator of the aggregation "token-mean", as
    in the source: (1 / n) Σ w L = (1 / k) Σ_selected L. H is the entropy of the policy that is
    being updated.

    Source: Eq. 6 of https://arxiv.org/abs/2506.01939, the count as in its code,
    https://github.com/Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR (`entropy_top_ratio`), where it
    is of each micro-batch.

    Args:
      fraction: Fraction of the tokens to train on, 0 < fraction ≤ 1.

    Returns:
      A token weighting of scope "batch".

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 < fraction <= 1, "forking_tokens.fraction", fraction, "a number > 0 and <= 1")

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        tokens = jnp.sum(stats.mask)
        kept = rounded_up(fraction, tokens)
        return top(stats.entropy, stats.mask, kept) * (tokens / jnp.maximum(kept, 1))

    return TokenWeighting(select, "batch")


def erc(low: float = 0.95, high: float = 1.05) -> TokenWeighting:
    """ERC, entropy ratio clipping: no gradient from a token whose entropy has changed too much.

    wₜ = 1[low < (Hₜ + ε) / (H_oldₜ + ε) < high],   ε = 1e-8

    This ratio bounds the change of the whole distribution, that of PPO the change of the sampled
    token; both apply. Source: https://arxiv.org/abs/2512.05591, the range from the scripts of
    https://github.com/Kwai-Klear/ERC. There the reported loss, unlike its gradient, includes the
    tokens of weight 0. The range is narrow: with entropies recorded by a sampler of lower
    precision, rounding alone can exceed it.

    Args:
      low: Lower bound, 0 ≤ low < 1.
      high: Upper bound > 1.

    Returns:
      A token weighting of scope "token".

    Raises:
      ValueError: An argument is out of range.
    """
    check_band("erc", low, high)

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        # By rounding an entropy of 0 can be slightly negative.
        new, old = (jnp.maximum(h, 0) + 1e-8 for h in (stats.entropy, stats.old_entropy))
        return ((new / old > low) & (new / old < high)).astype(jnp.float32)

    return TokenWeighting(select, "token")
