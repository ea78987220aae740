"""Fold over micro-batches of packed rows, which fit the memory.

A micro-batch holds packed tokens of as many rows as fit, so that the tokens that are computed are
those that count, whatever the lengths. Rows are taken longest first, since attention unpacks them:
it runs in the smallest of a few compiled shapes that holds the rows of the micro-batch. How often
each shape runs is decided on the device. The split changes no result but the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.models.packing import pack_tokens
from entropy_rl.types import PackedTokens

# Packed tokens of a row that attention is compiled for, as fractions of the largest number.
_LENGTH_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
_LENGTH_MULTIPLE = 8
# Unpacked columns of a shape per packed token, which limit the rows of a shape, and with them the
# memory of attention: without those of a shared prompt, and with them.
_COLUMNS_PER_TOKEN = 2
_COLUMNS_PER_TOKEN_WITH_PROMPT = 8


class Rows(NamedTuple):
    """Rows, and which of their columns are computed."""

    arrays: Any  # a nest of [B, ...]
    first: jax.Array  # int32[B], first column
    last: jax.Array  # int32[B], column after the last; `first` for a row that is not computed


class MicroBatch(NamedTuple):
    """Some of the rows of a mini-batch. Padding rows have no packed token, and arrays of zeros."""

    arrays: Any
    # int32[C, R / C], index of each row within its shard; None for the whole mini-batch
    index: jax.Array | None
    packed: PackedTokens | None  # None for the whole mini-batch, unpacked

    def take(self, whole: jax.Array) -> jax.Array:
        """The rows [R, ...] of an array [B, ...]; zeros in padding rows."""
        return _take(whole, self.index)

    def put(self, whole: jax.Array, values: jax.Array) -> jax.Array:
        """An array [B, ...] with the values [R, ...] in the rows of the micro-batch."""
        if self.index is None:
            return values
        put = jax.vmap(lambda w, n, v: w.at[n].set(v, mode="drop"))
        split = lambda x: x.reshape((self.index.shape[0], -1) + x.shape[1:])  # noqa: E731
        return put(split(whole), self.index, split(values)).reshape(whole.shape)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    x = x.reshape((index.shape[0], -1) + x.shape[1:])
    x = jax.vmap(lambda y, n: jnp.take(y, n, axis=0, mode="fill", fill_value=0))(x, index)
    return x.reshape((-1,) + x.shape[2:])


class Shape(NamedTuple):
    """Unpacked rows of a shard that attention is compiled for."""

    columns: int
    rows: int


def micro_batch_shapes(
    rows: int,
    length: int,
    tokens: int,
    fractions: tuple[float, ...] = _LENGTH_FRACTIONS,
    prompt: int = 0,
) -> tuple[Shape, ...]:
    """Choose the shapes of micro-batches, from short to long.

    Args:
      rows: Rows of a shard.
      length: Packed tokens of the longest.
      tokens: Packed tokens of a micro-batch, in each shard.
      fractions: Lengths, as fractions of `length`.
      prompt: Columns of a shared prompt, to which attention adds the packed tokens of a row.

    Raises:
      ValueError: Not even one row fits.
    """
    if tokens < length:
        raise ValueError(
            f"max_tokens_per_micro_batch: must be >= {length}, the length of a row, got {tokens}"
        )
    multiple = _LENGTH_MULTIPLE
    lengths = {min(length, -(-int(part * length) // multiple) * multiple) for part in fractions}

    def most_rows(columns: int) -> int:
        with_prompt = _COLUMNS_PER_TOKEN_WITH_PROMPT * tokens // (columns + prompt)
        return min(rows, _COLUMNS_PER_TOKEN * tokens // columns, with_prompt)

    return tuple(Shape(columns, most_rows(columns)) for columns in sorted(lengths - {0}))


def fold_micro_batches(
    step: Callable[[Any, MicroBatch], Any],
    start: Any,
    rows: Rows,
    shapes: tuple[Shape, ...],
    tokens: int,
    shards: int = 1,
) -> Any:
    """Fold a function over the micro-batches of a mini-batch.

    Args:
      step: (carry, micro-batch) -> carry. Each row with a token to compute is in one micro-batch.
      start: The first carry.
      rows: The mini-batch.
      shapes: From `micro_batch_shapes`.
      tokens: Packed tokens of a micro-batch, in each shard.
      shards: Equal contiguous shards of the rows, on different devices. A micro-batch takes rows
        from all of them.

    Returns:
      The last carry.
    """
    lengths = (rows.last - rows.first).reshape(shards, -1)
    in_shard = lengths.shape[1]
    needed = (lengths > 0).sum(-1)
    order = jnp.argsort(-lengths, axis=1, stable=True).astype(jnp.int32)
    lengths = jnp.take_along_axis(lengths, order, axis=1)
    before = jnp.pad(jnp.cumsum(lengths, axis=1), ((0, 0), (1, 0)))  # tokens of the rows before
    most = max(shape.rows for shape in shapes)
    order = jnp.pad(order, ((0, 0), (0, most)), constant_values=in_shard)
    lengths = jnp.pad(lengths, ((0, 0), (0, 1)))

    def at(x: jax.Array, start: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, start[:, None], axis=1)[:, 0]

    def next_micro_batch(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        start, carry = state
        which = jnp.searchsorted(jnp.array([s.columns for s in shapes]), at(lengths, start).max())
        full = jax.vmap(lambda b, limit: jnp.searchsorted(b, limit, side="right") - 1)(
            before, at(before, start) + tokens
        )
        stop = jnp.minimum(
            jnp.minimum(full, start + jnp.array([s.rows for s in shapes])[which]), needed
        )
        index = jax.vmap(lambda o, p: jax.lax.dynamic_slice_in_dim(o, p, most))(order, start)
        index = jnp.where(start[:, None] + jnp.arange(most)[None] < stop[:, None], index, in_shard)
        arrays, first, last = jax.tree.map(lambda x: _take(x, index), rows)
        packed = pack_tokens(first, last, which, shapes, room=tokens, shards=shards)
        return stop, step(carry, MicroBatch(arrays, index, packed))

    _, carry = jax.lax.while_loop(
        lambda state: (state[0] < needed).any(),
        next_micro_batch,
        (jnp.zeros(shards, needed.dtype), start),
    )
    return carry
