"""Attention to a cache of two regions: the prompt, which a group shares, and the new tokens of a row."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

_MASKED = jnp.finfo(jnp.float32).min  # not -inf: a row with nothing to see must not become NaN


# Keys have their columns last: the scores of a row are then sums of whole vectors, which costs a CPU a third
# of what dot products along the last axis do.


@struct.dataclass
class PromptCache:
    """Keys and values of the prompts in one layer."""

    keys: jax.Array  # [Q, K, h, S]
    values: jax.Array  # [Q, K, S, h]


@struct.dataclass
class RowCache:
    """Keys and values of the new tokens in one layer."""

    keys: jax.Array  # [R, K, h, N]
    values: jax.Array  # [R, K, N, h]


class AttentionPart(NamedTuple):
    """Attention over one region, before it is divided: o = Σ exp(s - m) v, m = max s, l = Σ exp(s - m)."""

    out: jax.Array  # f32[..., h]
    peak: jax.Array  # f32[...]
    total: jax.Array  # f32[...]


def attention_part(scores: jax.Array, seen: jax.Array, values: jax.Array, equation: str) -> AttentionPart:
    """Attention over one region from its scores.

    Args:
      scores: f32[..., columns].
      seen: bool, broadcast to the scores.
      values: The values.
      equation: The einsum of weights and values.
    """
    scores = jnp.where(seen, scores, _MASKED)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    out = jnp.einsum(equation, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return AttentionPart(out, peak, jnp.sum(weights, axis=-1))


def merge_parts(one: AttentionPart, other: AttentionPart) -> jax.Array:
    """One softmax over both regions: with M = max(m₁, m₂), Σ exp(mᵢ - M) oᵢ / Σ exp(mᵢ - M) lᵢ.

    A region that sees nothing has the lowest possible m and no weight beside one that does.

    Returns:
      f32[..., h].
    """
    peak = jnp.maximum(one.peak, other.peak)
    a, b = jnp.exp(one.peak - peak), jnp.exp(other.peak - peak)
    return (a[..., None] * one.out + b[..., None] * other.out) / (a * one.total + b * other.total)[..., None]


def append(cache: RowCache, k: jax.Array, v: jax.Array, t: jax.Array) -> RowCache:
    """Writes the keys and values of a token into column t of every row.

    Args:
      cache: That of R rows.
      k: [R, K, h].
      v: [R, K, h].
      t: int32[], the same column everywhere, or int32[R].
    """
    if jnp.ndim(t) == 0:  # one slice for all rows: a TPU scatters row by row
        return RowCache(
            keys=jax.lax.dynamic_update_slice(cache.keys, k[..., None], (0, 0, 0, t)),
            values=jax.lax.dynamic_update_slice(cache.values, v[:, :, None], (0, 0, t, 0)),
        )
    rows = jnp.arange(len(t))
    how = dict(unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds")
    return RowCache(
        keys=cache.keys.at[rows, :, :, t].set(k, **how), values=cache.values.at[rows, :, t].set(v, **how)
    )


def cached_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prompts: PromptCache,
    rows: RowCache,
    t: jax.Array,
    prompt_mask: jax.Array,
    window: int | None = None,
) -> tuple[jax.Array, RowCache]:
    """Attention of the t-th new token of each row to its prompt and to the new tokens up to itself.

    The rows of a group read the same prompt keys in one matrix product.

    Args:
      q: [R, H, h].
      k: [R, K, h], to be appended at column t.
      v: [R, K, h], likewise.
      prompts: The prompts' cache; R is a multiple of its Q, and rows of a prompt stand together.
      rows: The rows' cache.
      t: int32[] or int32[R].
      prompt_mask: bool[Q, S].
      window: Tokens further back than window - 1 are not seen.

    Returns:
      ([R, H, h], the rows' cache with the column written).
    """
    count, heads, h = q.shape
    entries, length = prompt_mask.shape
    kv_heads = k.shape[1]
    rows = append(rows, k, v, t)
    per_row_t = jnp.broadcast_to(t, (count,))

    # K heads x (rows of a prompt x H/K queries) against S prompt columns, and per row against N new columns.
    q = (q * h**-0.5).reshape(count, kv_heads, heads // kv_heads, h)
    grouped_q = q.reshape(entries, count // entries, kv_heads, heads // kv_heads, h)
    f32 = dict(preferred_element_type=jnp.float32)
    prompt_scores = jnp.einsum("qgkrh,qkhs->qgkrs", grouped_q, prompts.keys, **f32)
    row_scores = jnp.einsum("bkrh,bkhn->bkrn", q, rows.keys, **f32)

    columns = jnp.arange(rows.keys.shape[-1])[None]
    seen_prompt = jnp.broadcast_to(prompt_mask[:, None], (entries, count // entries, length))
    seen_row = columns <= per_row_t[:, None]
    if window is not None:
        first = prompt_mask.sum(-1, dtype=jnp.int32)[:, None] + per_row_t.reshape(entries, -1) - window
        seen_prompt &= jnp.arange(length)[None, None] > first[..., None]
        seen_row &= columns > per_row_t[:, None] - window
    prompt_part = attention_part(
        prompt_scores, seen_prompt[:, :, None, None], prompts.values, "qgkrs,qksh->qgkrh"
    )
    row_part = attention_part(row_scores, seen_row[:, None, None], rows.values, "bkrn,bknh->bkrh")
    prompt_part = AttentionPart(*(x.reshape(y.shape) for x, y in zip(prompt_part, row_part, strict=True)))
    out = merge_parts(prompt_part, row_part)
    return out.reshape(count, heads, h).astype(v.dtype), rows
