"""Selections by the entropy of the policy."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.inputs import rounded_up
from entropy_rl.losses.token_weights import TokenWeighting, check_band, top
from entropy_rl.masked import masked_sum
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


def opefo(score: Literal["paper", "first_order"] = "paper") -> TokenWeighting:
    """Balances the tokens that raise the entropy with those that lower it.

    wₜ = 1 + λ where dₜ > 0, 1 - λ where dₜ < 0, else 1;   λ = (N - P) / (N + P)
    P = Σ dₜ over dₜ > 0,   N = Σ |dₜ| over dₜ < 0, over the mini-batch

    so that the weighted changes of the entropy add up to nothing: (1 + λ) P = (1 - λ) N. Where all
    changes have one sign, none of them is left.

    "paper":        dₜ = -Aₜ (1 - pₜ)² (log pₜ + Hₜ)
    "first_order":  dₜ = -Aₜ pₜ (log pₜ + Hₜ), the change by one step on logits of a table, from one
    sample

    with pₜ = π(oₜ); the learning rate cancels. For strictly on-policy updates: one for each
    rollout.

    Source: OPEFO, https://arxiv.org/abs/2605.11491, from a summary: λ and the weights are its own,
    while "paper" is inferred from one published value of the score, which it reproduces, and not
    read.

    Args:
      score: "paper" or "first_order".

    Returns:
      A token_weighting of scope "batch".

    Raises:
      ValueError: The score is unknown.
    """
    require(score in ("paper", "first_order"), "opefo.score", score, "paper, first_order")

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        p = jnp.exp(stats.log_probs)
        scale = jnp.square(1 - p) if score == "paper" else p
        d = -advantages * scale * (stats.log_probs + stats.entropy)
        raising, lowering = d > 0, d < 0
        up, down = masked_sum(d, stats.mask & raising), -masked_sum(d, stats.mask & lowering)
        balance = (down - up) / jnp.where(up + down > 0, up + down, 1)
        return 1 + balance * (raising.astype(jnp.float32) - lowering.astype(jnp.float32))

    return TokenWeighting(select, "batch")
