"""AsymGRPO: powers of the odds of success as advantages."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from entropy_rl.advantages.groups import check_group_size, in_groups
from entropy_rl.advantages.transform import Transform
from entropy_rl.masked import masked_center
from entropy_rl.types import TokenStats


def asymgrpo(group_size: int, b_pos: float = 0.9, b_neg: float = 0.4) -> Transform:
    """Weigh successes and failures by powers of the odds.

    A⁺ = ((1 - p) / p)^b⁺,   A⁻ = -(p / (1 - p))^b⁻

    with p the share of successes among the scored rows of the group. b⁺ = b⁻ = 1/2 is
    `group_normalize` with `ddof=0`, and 0 gives ±1. Source: AsymGRPO,
    https://arxiv.org/abs/2604.04894, from a summary of the paper; no code of it was found.

    Args:
      group_size: Completions per prompt (G), at least 2.
      b_pos: Exponent b⁺ >= 0 of the successes; the larger, the more a rare one counts.
      b_neg: Exponent b⁻ >= 0 of the failures.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("asymgrpo", group_size)
    for name, value in (("b_pos", b_pos), ("b_neg", b_neg)):
        if not 0 <= value < math.inf:
            raise ValueError(f"asymgrpo: {name}={value!r} is not allowed; {name} >= 0")

    def normalize(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("asymgrpo", group_size, advantages, stats)
        correct = masked_center(rewards, judged, axis=1) > 0
        wins = jnp.sum(correct, axis=1, keepdims=True)
        losses = jnp.sum(judged, axis=1, keepdims=True) - wins
        mixed = (wins > 0) & (losses > 0)
        odds = jnp.where(mixed, wins / jnp.maximum(losses, 1), 1)
        values = jnp.where(correct, odds**-b_pos, -(odds**b_neg))
        return jnp.where(judged & mixed, values, 0).reshape(advantages.shape)

    return Transform(normalize, "group")
