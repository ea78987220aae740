"""Sequence packing: from padded rows to packed tokens, and back."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.types import PackedTokens


def pack_tokens(
    first: jax.Array,
    last: jax.Array,
    shape_index: jax.Array,
    shapes: tuple[tuple[int, int], ...],
    *,
    room: int,
    shards: int,
) -> PackedTokens:
    """Compute segment ids and positions of the packed tokens of rows.

    Args:
      first: int32[R], first position of each row.
      last: int32[R], position after the last.
      shape_index: int32[], the first of the shapes that holds all tokens.
      shapes: (tokens of a row, rows per shard) that attention is compiled for.
      room: M, packed length; no shard has more tokens.
      shards: C.
    """
    rows = first.shape[0] // shards
    starts, ends = _extents(first, last, shards)
    index = jnp.arange(room, dtype=jnp.int32)
    segment_ids = jax.vmap(lambda e: jnp.searchsorted(e, index, side="right"))(ends)
    segment_ids = segment_ids.astype(jnp.int32)
    row = jnp.minimum(segment_ids, rows - 1)
    positions = index[None] + jnp.take_along_axis(first.reshape(shards, rows) - starts, row, axis=1)
    positions = jnp.where(segment_ids < rows, positions, 0)
    return PackedTokens(segment_ids, positions, first, last, shape_index, shapes)


def _extents(first: jax.Array, last: jax.Array, shards: int) -> tuple[jax.Array, jax.Array]:
    """Start and end of each row in its shard's packed tokens, int32[C, R / C] each."""
    counts = (last - first).reshape(shards, -1)
    ends = jnp.cumsum(counts, axis=1)
    return ends - counts, ends


class Packing(NamedTuple):
    """Index maps between an array of rows and packed tokens, in both directions.

    The array has the first rows of each shard, and a window of columns whose start may differ
    between rows.
    """

    # int32[C, M]: row * columns + column of each token; out of range if not in the array
    to_rows: jax.Array
    # int32[C, rows * columns]: index of each entry in the packed tokens; out of range if padding
    to_packed: jax.Array
    columns: int | jax.Array

    def pack(self, x: jax.Array) -> jax.Array:
        """Rows [C * rows, columns, ...] -> packed [C, M, ...]; zeros for tokens not in `x`."""
        shards = self.to_rows.shape[0]
        return _gather(x.reshape((shards, -1) + x.shape[2:]), self.to_rows, self.to_packed)

    def unpack(self, x: jax.Array) -> jax.Array:
        """Packed [C, M, ...] -> rows [C * rows, columns, ...]; zeros for padding."""
        return _gather(x, self.to_packed, self.to_rows).reshape((-1, self.columns) + x.shape[2:])


def make_packing(
    packed: PackedTokens,
    columns: int | jax.Array,
    rows: int | jax.Array | None = None,
    begin: jax.Array | None = None,
    entries: int | None = None,
) -> Packing:
    """Build the `Packing` of arrays [C * rows, columns, ...].

    Args:
      packed: The packed tokens.
      columns: Columns of the arrays.
      rows: Rows of the arrays per shard, the first of those of `packed`; None for all.
      begin: int32[R], position of the arrays' first column in each row, possibly negative; None
        for 0.
      entries: At least rows * columns, where these are arrays: the size of `to_packed`, of which
        the first rows * columns count.
    """
    shards = packed.segment_ids.shape[0]
    in_all = packed.first.shape[0] // shards
    rows = in_all if rows is None else rows
    starts, _ = _extents(packed.first, packed.last, shards)
    first, last, begin = (
        x.reshape(shards, in_all)
        for x in (
            packed.first,
            packed.last,
            jnp.zeros_like(packed.first) if begin is None else begin,
        )
    )
    row = packed.segment_ids
    column = packed.positions - jnp.take_along_axis(begin, jnp.minimum(row, in_all - 1), axis=1)
    inside = (row < rows) & (column >= 0) & (column < columns)
    to_rows = jnp.where(inside, row * columns + column, rows * columns)

    if entries is None:  # the shape is known: slices instead of gathers
        column = jnp.arange(columns, dtype=jnp.int32)[None, None]
        first, last, begin, starts = (x[:, :rows, None] for x in (first, last, begin, starts))
        in_rows = True
    else:
        row, column = jnp.divmod(jnp.arange(entries, dtype=jnp.int32)[None], columns)
        of_rows = jnp.stack([first, last, begin, starts])
        first, last, begin, starts = jnp.take(of_rows, row[0], axis=2, mode="clip")
        in_rows = row < rows
    position = begin + column
    inside = in_rows & (position >= first) & (position < last)
    to_packed = jnp.where(inside, starts + position - first, packed.segment_ids.shape[1])
    return Packing(to_rows, to_packed.reshape(shards, -1), columns)


@jax.custom_vjp
def _gather(x: jax.Array, indices: jax.Array, inverse: jax.Array) -> jax.Array:
    """Gather x [C, A, ...] at indices [C, A']; zeros where out of range.

    `inverse` is the inverse of `indices`, which makes the gradient a gather too: scatter-add is
    slow.
    """
    return jax.vmap(
        lambda y, i: y.at[i].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    )(x, indices)


def _gather_forward(x: jax.Array, indices: jax.Array, inverse: jax.Array) -> tuple:
    return _gather(x, indices, inverse), (indices, inverse)


def _gather_backward(residuals: tuple, dy: jax.Array) -> tuple:
    indices, inverse = residuals
    return _gather(dy, inverse, indices), None, None


_gather.defvjp(_gather_forward, _gather_backward)
