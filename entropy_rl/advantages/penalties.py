"""Reward penalties by the length of a completion."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.types import TokenStats

Array = TypeVar("Array", jax.Array, np.ndarray)


def overlong_penalty(max_tokens: int, buffer_tokens: int, factor: float = 1.0) -> Transform:
    """Soft overlong punishment of DAPO: a penalty on the last tokens before the limit.

        r' = r - f clip((|o| - (L_max - L_buf)) / L_buf, 0, 1)

    It goes before the baseline, and dynamic sampling compares the rewards without it, as DAPO does.
    The reward `overlong` has the same formula; it is logged by name, and dynamic sampling sees it.
    Source: Eq. 13 of DAPO, https://arxiv.org/abs/2503.14476, where L_max is 20480, L_buf 4096 and f
    1; veRL's code has no lower bound -f; no completion that is cut off at L_max reaches it.

    Args:
      max_tokens: L_max, the limit of new tokens, the end-of-sequence token included.
      buffer_tokens: L_buf, in 1 .. L_max.
      factor: f >= 0.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: An argument is out of range.
    """
    check_overlong("overlong_penalty", max_tokens, buffer_tokens, "max_tokens")
    require(factor >= 0, "overlong_penalty.factor", factor, "a number >= 0")

    def penalize(rewards: jax.Array, stats: TokenStats) -> jax.Array:
        length = jnp.sum(stats.mask, axis=1, dtype=jnp.float32, keepdims=True)
        return rewards - factor * soft_overlong(length, max_tokens, buffer_tokens)

    return Transform(penalize, "group", reads="rewards", shifts=True)


def soft_overlong(length: Array, max_tokens: int, buffer_tokens: int) -> Array:
    """clip((|o| - (L_max - L_buf)) / L_buf, 0, 1), of lengths |o| in tokens."""
    return ((length - (max_tokens - buffer_tokens)) / buffer_tokens).clip(0, 1)


def check_overlong(name: str, max_tokens: int, buffer_tokens: int, limit: str = "max_new_tokens"):
    """Check the arguments of `soft_overlong`.

    Args:
      name: Name of the factory that has them, for the error.
      max_tokens: L_max.
      buffer_tokens: L_buf.
      limit: Name of the argument L_max.

    Raises:
      ValueError: L_buf is not in 1 .. L_max.
    """
    allowed = f"a whole number from 1 to {limit} ({max_tokens})"
    require(1 <= buffer_tokens <= max_tokens, f"{name}.buffer_tokens", buffer_tokens, allowed)
