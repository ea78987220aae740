"""Decode attention to a two-part cache: the prompt, shared by a group, and a row's new tokens."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from entropy_rl.models.attention.parts import Part, attention_part, merge_parts
from entropy_rl.models.attention.ragged import ragged_attention

DecodeImplementation = Literal["xla", "ragged"]


@struct.dataclass
class PromptCache:
    """Keys and values of the prompts in one layer.

    Keys have their columns last: a row's scores are then sums of vectors, which on CPU takes a
    third of the time of dot products along the last axis.
    """

    keys: jax.Array  # [Q, K, h, S]
    values: jax.Array  # [Q, K, S, h]


@struct.dataclass
class RowCache:
    """Keys and values of the new tokens in one layer."""

    keys: jax.Array  # [R, K, h, N]; [R, K, N, h] for the ragged implementation
    values: jax.Array  # [R, K, N, h]


def empty_row_cache(
    shape: tuple[int, int, int, int], dtype: Any, implementation: DecodeImplementation
) -> RowCache:
    """Allocate the cache of rows without new tokens.

    Args:
      shape: (R, K, N, h).
      dtype: Type of keys and values.
      implementation: The attention that will read it.
    """
    rows, heads, columns, h = shape
    keys = shape if implementation == "ragged" else (rows, heads, h, columns)
    return RowCache(keys=jnp.zeros(keys, dtype), values=jnp.zeros(shape, dtype))


def append(
    cache: RowCache, k: jax.Array, v: jax.Array, t: jax.Array, implementation: DecodeImplementation
) -> RowCache:
    """Write the keys and values of a token into column t of every row.

    Args:
      cache: Cache of R rows.
      k: [R, K, h].
      v: [R, K, h].
      t: int32[], the same column for all rows, or int32[R].
      implementation: The attention that will read it.
    """
    columns_last = implementation != "ragged"
    if jnp.ndim(t) == 0:  # one slice for all rows: TPUs scatter row by row
        put = jax.lax.dynamic_update_slice
        keys = (
            put(cache.keys, k[..., None], (0, 0, 0, t))
            if columns_last
            else put(cache.keys, k[:, :, None], (0, 0, t, 0))
        )
        return RowCache(keys, put(cache.values, v[:, :, None], (0, 0, t, 0)))
    rows = jnp.arange(len(t))
    # A row that has ended, or waits for its environment, may be behind the last column.
    how = dict(unique_indices=True, indices_are_sorted=True, mode="drop")
    place = (rows, slice(None), slice(None), t) if columns_last else (rows, slice(None), t)
    return RowCache(cache.keys.at[place].set(k, **how), cache.values.at[rows, :, t].set(v, **how))


def cached_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prompts: PromptCache,
    rows: RowCache,
    t: jax.Array,
    prompt_mask: jax.Array,
    window: int | None = None,
    *,
    implementation: DecodeImplementation = "xla",
    mesh: Mesh | None = None,
) -> tuple[jax.Array, RowCache]:
    """Attend from the t-th new token of each row to its prompt and its new tokens up to t.

    The rows of a group read the keys of their prompt in one matrix product.

    Args:
      q: [R, H, h].
      k: [R, K, h], to be appended at column t.
      v: [R, K, h], likewise.
      prompts: The prompts' cache; R is a multiple of Q, and the rows of a prompt are contiguous.
      rows: The rows' cache, as `empty_row_cache` makes it for this implementation.
      t: int32[] or int32[R].
      prompt_mask: bool[Q, S].
      window: Sliding window: tokens further back than window - 1 are masked.
      implementation: `xla` reads all columns of the rows' cache, `ragged` only the filled ones.
      mesh: For `ragged`, see `ragged_attention`.

    Returns:
      ([R, H, h], the rows' cache with column t written).
    """
    count, heads, h = q.shape
    kv_heads, per_head = k.shape[1], heads // k.shape[1]
    rows = append(rows, k, v, t, implementation)
    t = jnp.broadcast_to(t, (count,))
    row_q = q.reshape(count, kv_heads, per_head, h)
    if implementation == "ragged":
        first = jnp.zeros_like(t) if window is None else t + 1 - window
        row_part = ragged_attention(row_q, rows.keys, rows.values, first, t + 1, mesh=mesh)
    else:
        columns = jnp.arange(rows.values.shape[2])[None]
        mask = columns <= t[:, None]
        if window is not None:
            mask &= columns > t[:, None] - window
        row_part = attention_part(
            row_q, rows.keys, rows.values, mask[:, None, None], columns_last=True
        )
    prompt_part = _prompt_part(row_q, prompts, t, prompt_mask, window)
    out = merge_parts([prompt_part, row_part])
    return out.reshape(count, heads, h).astype(v.dtype), rows


def _prompt_part(
    q: jax.Array, prompts: PromptCache, t: jax.Array, prompt_mask: jax.Array, window: int | None
) -> Part:
    """Attention to the prompts, with all queries of a prompt as rows of one matrix."""
    count, kv_heads, per_head, _ = q.shape
    entries, length = prompt_mask.shape
    group = count // entries

    def gather(x: jax.Array) -> jax.Array:  # [R, K, r, ...] -> [Q, K, G r, ...]
        x = x.reshape((entries, group) + x.shape[1:]).swapaxes(1, 2)
        return x.reshape((entries, kv_heads, group * per_head) + x.shape[4:])

    def spread(x: jax.Array) -> jax.Array:
        x = x.reshape((entries, kv_heads, group, per_head) + x.shape[3:]).swapaxes(1, 2)
        return x.reshape((count, kv_heads, per_head) + x.shape[4:])

    mask = prompt_mask[:, None, None]
    if window is not None:
        first = prompt_mask.sum(-1, dtype=jnp.int32)[:, None] + t.reshape(entries, group) - window
        first = jnp.repeat(first, per_head, axis=1)[:, None, :, None]
        mask &= jnp.arange(length)[None, None, None] > first
    part = attention_part(gather(q), prompts.keys, prompts.values, mask, columns_last=True)
    return Part(*(spread(x) for x in part))
