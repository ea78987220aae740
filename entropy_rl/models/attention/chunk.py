"""Attention of a chunk of given tokens to a two-part cache, to which it is appended."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.models.attention.cached import DecodeImplementation, PromptCache, RowCache
from entropy_rl.models.attention.parts import attention_part, merge_parts


def append_chunk(
    cache: RowCache,
    k: jax.Array,
    v: jax.Array,
    t: jax.Array,
    count: jax.Array,
    implementation: DecodeImplementation,
) -> RowCache:
    """Write the keys and values of several tokens into columns t, t + 1, ... of each row.

    Args:
      cache: Cache of R rows.
      k: [R, C, K, h].
      v: [R, C, K, h].
      t: int32[R], the column of the first token.
      count: int32[R], tokens to write; the others are dropped.
      implementation: The attention that will read it.
    """
    number = jnp.arange(k.shape[1])[None]
    # Those to drop are out of range, each in a place of its own.
    start = jnp.where(number < count[:, None], t[:, None], cache.values.shape[2])
    rows, columns, every = jnp.arange(len(t))[:, None], start + number, slice(None)
    of_values = (rows, every, columns)
    of_keys = of_values if implementation == "ragged" else (rows, every, every, columns)
    how = dict(unique_indices=True, mode="drop")
    return RowCache(cache.keys.at[of_keys].set(k, **how), cache.values.at[of_values].set(v, **how))


def chunk_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prompts: PromptCache,
    rows: RowCache,
    t: jax.Array,
    count: jax.Array,
    prompt_mask: jax.Array,
    window: int | None = None,
    *,
    implementation: DecodeImplementation = "xla",
) -> tuple[jax.Array, RowCache]:
    """Attend from the new tokens t, ..., t + C - 1 of each row to its prompt and to each other.

    Args:
      q: [R, C, H, h].
      k: [R, C, K, h], to be appended from column t on.
      v: [R, C, K, h], likewise.
      prompts: The prompts' cache, one entry for each row.
      rows: The rows' cache, as `empty_row_cache` makes it for this implementation.
      t: int32[R], the column of the first token.
      count: int32[R], tokens of each row; the output of the others is undefined.
      prompt_mask: bool[R, S].
      window: Sliding window: tokens further back than window - 1 are masked.
      implementation: The layout of the rows' cache.

    Returns:
      ([R, C, H, h], the rows' cache with the chunk written).
    """
    size, chunk, heads, h = q.shape
    kv_heads, per_head = k.shape[2], heads // k.shape[2]
    rows = append_chunk(rows, k, v, t, count, implementation)
    queries = q.reshape(size, chunk, kv_heads, per_head, h).swapaxes(1, 2)
    queries = queries.reshape(size, kv_heads, chunk * per_head, h)
    at = jnp.repeat(t[:, None] + jnp.arange(chunk)[None], per_head, axis=1)[:, None, :, None]
    columns = jnp.arange(rows.values.shape[2])[None, None, None]
    row_mask, mask = columns <= at, prompt_mask[:, None, None]
    if window is not None:
        row_mask &= columns > at - window
        length = prompt_mask.sum(-1, dtype=jnp.int32)[:, None, None, None]
        mask = mask & (jnp.arange(prompt_mask.shape[1])[None, None, None] > length + at - window)
    columns_last = implementation != "ragged"
    out = merge_parts(
        [
            attention_part(queries, prompts.keys, prompts.values, mask, columns_last=True),
            attention_part(queries, rows.keys, rows.values, row_mask, columns_last=columns_last),
        ]
    )
    out = out.reshape(size, kv_heads, chunk, per_head, h).swapaxes(1, 2)
    return out.reshape(size, chunk, heads, h).astype(v.dtype), rows
