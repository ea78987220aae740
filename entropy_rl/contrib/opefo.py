"""OPEFO, reconstructed: balance of the tokens that raise and lower the entropy."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.token_weights import TokenWeighting
from entropy_rl.masked import masked_sum
from entropy_rl.types import TokenStats


def opefo(score: Literal["paper", "first_order"] = "paper") -> TokenWeighting:
    """OPEFO: balance the tokens that raise the entropy with those that lower it.

    wₜ = 1 + λ where dₜ > 0, 1 - λ where dₜ < 0, else 1;   λ = (N - P) / (N + P)
    P = Σ dₜ over dₜ > 0,   N = Σ |dₜ| over dₜ < 0, over the mini-batch

    so that the weighted changes of the entropy add up to 0: (1 + λ) P = (1 - λ) N. Where all
    changes have the same sign, all their weights are 0.

    "paper":        dₜ = -Aₜ (1 - pₜ)² (log pₜ + Hₜ)
    "first_order":  dₜ = -Aₜ pₜ (log pₜ + Hₜ), the first-order change for tabular logits

    with pₜ = π(oₜ); the learning rate cancels. For strictly on-policy updates: one for each
    rollout.

    Source: OPEFO, https://arxiv.org/abs/2605.11491, from a summary: λ and the weights are its own,
    while "paper" is inferred from one published value of the score, which it reproduces, and not
    read.

    Args:
      score: "paper" or "first_order".

    Returns:
      A token weighting of scope "batch".

    Raises:
      ValueError: The score is unknown.
    """
    require(score in ("paper", "first_order"), "opefo.score", score, "paper or first_order")

    def select(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        p = jnp.exp(stats.log_probs)
        scale = jnp.square(1 - p) if score == "paper" else p
        d = -advantages * scale * (stats.log_probs + stats.entropy)
        raising, lowering = d > 0, d < 0
        up, down = masked_sum(d, stats.mask & raising), -masked_sum(d, stats.mask & lowering)
        balance = (down - up) / jnp.where(up + down > 0, up + down, 1)
        return 1 + balance * (raising.astype(jnp.float32) - lowering.astype(jnp.float32))

    return TokenWeighting(select, "batch")
