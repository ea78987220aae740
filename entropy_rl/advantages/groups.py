"""The rows of a batch as groups, one for each prompt: row b belongs to group b // G."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.masked import masked_var
from entropy_rl.types import TokenStats


def check_group_size(name: str, group_size: int) -> None:
    """Checks, for the factory `name`, that a group has rows to compare.

    Raises:
      ValueError: If it has not.
    """
    if group_size < 2:
        raise ValueError(
            f"{name}: group_size={group_size!r} is not allowed; "
            "a group baseline needs at least 2 completions per prompt (rollout.group_size)"
        )


def in_groups(
    name: str, group_size: int, advantages: jax.Array, stats: TokenStats
) -> tuple[jax.Array, jax.Array]:
    """Rewards or advantages of the rows, f32[P, G], and which rows have a judgement, bool[P, G].

    Raises:
      ValueError: There is not one value for each row, or the rows are no whole groups.
    """
    rows, columns = advantages.shape
    if columns != 1:
        raise ValueError(
            f"{name}: got advantages of shape {advantages.shape}; expected {(rows, 1)}, one for "
            "each row. "
            "A group baseline stands before the transforms that tell tokens apart"
        )
    if rows % group_size:
        raise ValueError(f"{name}: {rows} rows are no multiple of group_size={group_size}")
    return advantages.reshape(-1, group_size), stats.has_reward.reshape(-1, group_size)


def over_std(
    x: jax.Array, values: jax.Array, judged: jax.Array, *, eps: float, ddof: int = 1
) -> jax.Array:
    """x / (std(values) + ε) within each group; `x` itself, not 0 / 0, where the values are all
    equal.

    Args:
      x: f32[P, G].
      values: f32[P, G].
      judged: bool[P, G], which of the values count.
      eps: Added to the standard deviation.
      ddof: 1 for the standard deviation of a sample, 0 for that of a population.

    Returns:
      f32[P, G].
    """
    std = jnp.sqrt(masked_var(values, judged, axis=1, ddof=ddof, keepdims=True))
    return x / jnp.where(std > 0, std + eps, 1)
