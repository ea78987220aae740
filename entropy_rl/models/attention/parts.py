"""Partial attention over disjoint sets of columns, merged into one softmax.

Each part comes with the statistics (max and sum) that the merge needs, as in flash decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.precision import product_precision

MASKED = float(jnp.finfo(jnp.float32).min)  # not -inf: a fully masked row must not become NaN


class Part(NamedTuple):
    """Unnormalized attention to some columns, with scores x_n = q · k_n / √h over unmasked n:

        max = max_n x_n        sum = Σ_n exp(x_n - max)        out = Σ_n exp(x_n - max) v_n

    If all columns are masked, `max` is the smallest float32 and the others are zero.
    """

    out: jax.Array  # f32[R, K, r, h]
    max: jax.Array  # f32[R, K, r]
    sum: jax.Array  # f32[R, K, r]


def merge_parts(parts: Sequence[Part]) -> jax.Array:
    """Merge parts into one softmax over the columns of all.

        out = Σ_i exp(max_i - m) out_i / Σ_i exp(max_i - m) sum_i        m = max_i max_i

    Args:
      parts: Parts of the same queries over disjoint columns.

    Returns:
      f32[R, K, r, h]; zero where all columns are masked.
    """
    part = merge_statistics(jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts))
    # The sum of a part with an unmasked column is at least 1.
    return part.out / jnp.where(part.sum > 0, part.sum, 1.0)[..., None]


def merge_statistics(parts: Part) -> Part:
    """Merge parts that are stacked along a first axis, into one part."""
    highest = parts.max.max(0)
    weights = jnp.exp(parts.max - highest[None])
    return Part((weights[..., None] * parts.out).sum(0), highest, (weights * parts.sum).sum(0))


def attention_part(
    q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, *, columns_last: bool = False
) -> Part:
    """Partial attention of a few queries per KV head, in plain XLA: the reference.

    Args:
      q: [R, K, r, h]; r queries, such as the H/K heads that share a KV head.
      keys: [R, K, N, h], or [R, K, h, N] if `columns_last`.
      values: [R, K, N, h].
      mask: bool[...], broadcastable to [R, K, r, N], of the same rank; True for attended columns.
      columns_last: Layout of the keys.

    Returns:
      The part.
    """
    f32 = dict(precision=product_precision(q.dtype), preferred_element_type=jnp.float32)
    equation = "gkrh,gkhn->gkrn" if columns_last else "gkrh,gknh->gkrn"
    scores = jnp.einsum(equation, q, keys, **f32) * q.shape[-1] ** -0.5
    highest = jnp.where(mask, scores, MASKED).max(-1)
    weights = jnp.where(mask, jnp.exp(scores - highest[..., None]), 0.0)
    out = jnp.einsum("gkrn,gknh->gkrh", weights.astype(values.dtype), values, **f32)
    return Part(out, highest, weights.sum(-1))
