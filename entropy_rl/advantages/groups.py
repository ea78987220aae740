"""The sequences of a batch in groups, one for each prompt: sequence b belongs to group b // G."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from entropy_rl.advantages.transform import Reads, Scope, Transform
from entropy_rl.config.checks import is_count, require
from entropy_rl.masked import masked_var
from entropy_rl.types import TokenStats

GroupFn = Callable[[jax.Array, jax.Array, TokenStats], jax.Array]


def group_transform(
    name: str,
    group_size: int,
    fn: GroupFn,
    scope: Scope = "group",
    *,
    reads: Reads | None = None,
    shifts: bool = False,
) -> Transform:
    """Make a transform from a function of the rewards of groups.

    Args:
      name: Name of the factory, for errors.
      group_size: Completions per prompt (G), at least 2.
      fn: (rewards f32[P, G], has_reward bool[P, G], stats) -> advantages f32[P, G], 0 where there
        is no reward.
      scope: Scope of the transform.
      reads: As in `Transform`.
      shifts: As in `Transform`.

    Returns:
      A transform f32[B, 1] -> f32[B, 1], a baseline unless it reads advantages.

    Raises:
      ValueError: The group size is below 2; when called: as `in_groups`.
    """
    check_group_size(name, group_size)

    def transform(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, has_reward = in_groups(name, group_size, advantages, stats)
        return fn(rewards, has_reward, stats).reshape(advantages.shape)

    return Transform(
        transform, scope, reads=reads, is_baseline=reads != "advantages", shifts=shifts
    )


def check_group_size(name: str, group_size: int) -> None:
    """Check that a group of the factory `name` has at least two completions to compare.

    Raises:
      ValueError: It has fewer.
    """
    require(
        is_count(group_size, 2),
        f"{name}.group_size",
        group_size,
        "an integer, at least 2 completions per prompt (rollout.group_size)",
    )


def in_groups(
    name: str, group_size: int, advantages: jax.Array, stats: TokenStats
) -> tuple[jax.Array, jax.Array]:
    """Reshape to groups: advantages or rewards f32[P, G] and the mask `has_reward` bool[P, G].

    Raises:
      ValueError: There is not one value for each sequence, or B is no multiple of the group size.
    """
    sequences, columns = advantages.shape
    if columns != 1:
        raise ValueError(
            f"{name}: advantages must have shape {(sequences, 1)}, one for each sequence, got "
            f"{advantages.shape}; a group baseline goes before transforms that give each token "
            "its own advantage"
        )
    if sequences % group_size:
        raise ValueError(
            f"{name}: the number of sequences must be a multiple of group_size ({group_size}), got "
            f"{sequences}"
        )
    return advantages.reshape(-1, group_size), stats.has_reward.reshape(-1, group_size)


def over_std(
    x: jax.Array, values: jax.Array, has_reward: jax.Array, *, eps: float, ddof: int = 1
) -> jax.Array:
    """x / (std(values) + ε) within each group; `x` itself, not 0 / 0, where the values are all
    equal.

    Args:
      x: f32[P, G].
      values: f32[P, G].
      has_reward: bool[P, G], the values that count.
      eps: Added to the standard deviation.
      ddof: 1 for the standard deviation of a sample, 0 for that of a population.

    Returns:
      f32[P, G].
    """
    std = jnp.sqrt(masked_var(values, has_reward, axis=1, ddof=ddof, keepdims=True))
    return x / jnp.where(std > 0, std + eps, 1)
