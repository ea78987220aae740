"""AsymGRPO: powers of the odds of success as advantages."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from entropy_rl.advantages.groups import group_transform
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_center
from entropy_rl.types import TokenStats


def asymgrpo(group_size: int, b_pos: float = 0.9, b_neg: float = 0.4) -> Transform:
    """AsymGRPO: powers of the odds of success as advantages, with an exponent for each sign.

    A⁺ = ((1 - p) / p)^b⁺,   A⁻ = -(p / (1 - p))^b⁻

    with p the fraction of successes among the scored completions of the group. It is made for
    rewards of two values: a success is a reward above the group's mean. b⁺ = b⁻ = 1/2 is
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
    for name, value in (("b_pos", b_pos), ("b_neg", b_neg)):
        require(0 <= value < math.inf, f"asymgrpo.{name}", value, "a number >= 0")

    def normalize(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        correct = masked_center(rewards, has_reward, axis=1) > 0
        wins = jnp.sum(correct, axis=1, keepdims=True)
        losses = jnp.sum(has_reward, axis=1, keepdims=True) - wins
        mixed = (wins > 0) & (losses > 0)
        odds = jnp.where(mixed, wins / jnp.maximum(losses, 1), 1)
        values = jnp.where(correct, odds**-b_pos, -(odds**b_neg))
        return jnp.where(has_reward & mixed, values, 0)

    return group_transform("asymgrpo", group_size, normalize)
