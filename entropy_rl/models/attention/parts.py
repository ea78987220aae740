"""Attention in parts, each over some of the columns, that can be merged into one softmax.

The softmax over several regions is not known to any of them, so a part comes with the statistics
that the merge needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = float(
    jnp.finfo(jnp.float32).min
)  # not -inf: a row with nothing to see must not become NaN


class Part(NamedTuple):
    """Attention to some columns, before the division: with scores x_n = q · k_n / √h over what is
    seen,

        max = max_n x_n        sum = Σ_n exp(x_n - max)        out = Σ_n exp(x_n - max) v_n

    Where nothing is seen, `max` is the smallest float32 and the others are zero.
    """

    out: jax.Array  # f32[R, K, r, h]
    max: jax.Array  # f32[R, K, r]
    sum: jax.Array  # f32[R, K, r]


def merge_parts(parts: Sequence[Part]) -> jax.Array:
    """One softmax over the columns of all parts.

        out = Σ_i exp(max_i - m) out_i / Σ_i exp(max_i - m) sum_i        m = max_i max_i

    Args:
      parts: Of the same queries, over columns of which none is in two parts.

    Returns:
      f32[R, K, r, h]; zero where no part saw anything.
    """
    part = merge_statistics(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))
    # The sum of a part that saw something is at least 1.
    return part.out / jnp.where(part.sum > 0, part.sum, 1.0)[..., None]


def merge_statistics(parts: Part) -> Part:
    """The part over the columns of all parts, which are stacked along a first axis."""
    highest = parts.max.max(0)
    weights = jnp.exp(parts.max - highest[None])
    return Part((weights[..., None] * parts.out).sum(0), highest, (weights * parts.sum).sum(0))


def attention_part(
    q: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array, *, columns_last: bool = False
) -> Part:
    """Attention of a few queries per KV head to some columns, in plain XLA: the reference.

    Args:
      q: [R, K, r, h]; r queries, such as the H/K heads that share a KV head.
      keys: [R, K, N, h], or [R, K, h, N] if `columns_last`.
      values: [R, K, N, h].
      seen: bool[...], to be broadcast to [R, K, r, N], of the same rank.
      columns_last: How the keys lie.

    Returns:
      The part.
    """
    f32 = dict(preferred_element_type=jnp.float32)
    equation = "gkrh,gkhn->gkrn" if columns_last else "gkrh,gknh->gkrn"
    scores = jnp.einsum(equation, q, keys, **f32) * q.shape[-1] ** -0.5
    highest = jnp.where(seen, scores, MASKED).max(-1)
    weights = jnp.where(seen, jnp.exp(scores - highest[..., None]), 0.0)
    out = jnp.einsum("gkrn,gknh->gkrh", weights.astype(values.dtype), values, **f32)
    return Part(out, highest, weights.sum(-1))
