"""From rows to lists of live tokens, and back."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.types import PackedTokens


def pack_tokens(
    first: jax.Array,
    last: jax.Array,
    which: jax.Array,
    shapes: tuple[tuple[int, int], ...],
    *,
    room: int,
    shards: int,
) -> PackedTokens:
    """The lists of the live tokens of rows.

    Args:
      first: int32[R], the first live column of each row.
      last: int32[R], the column behind the last.
      which: int32[], the first of the shapes that holds all live tokens.
      shapes: (columns, rows of a share) that are compiled.
      room: M, length of a list; no share has more live tokens.
      shards: C.
    """
    rows = first.shape[0] // shards
    starts, ends = _extents(first, last, shards)
    place = jnp.arange(room, dtype=jnp.int32)
    row = jax.vmap(lambda e: jnp.searchsorted(e, place, side="right"))(ends).astype(jnp.int32)
    known = jnp.minimum(row, rows - 1)
    column = place[None] + jnp.take_along_axis(first.reshape(shards, rows) - starts, known, axis=1)
    return PackedTokens(row, jnp.where(row < rows, column, 0), first, last, which, shapes)


def _extents(first: jax.Array, last: jax.Array, shards: int) -> tuple[jax.Array, jax.Array]:
    """Where each row begins and ends in the list of its share, int32[C, R / C] each."""
    counts = (last - first).reshape(shards, -1)
    ends = jnp.cumsum(counts, axis=1)
    return ends - counts, ends


class Packing(NamedTuple):
    """Where each token of an array of rows stands in the lists, and the other way round.

    Its rows are the first so many of each share, its columns a window that can stand elsewhere in
    each row.
    """

    slots: (
        jax.Array
    )  # int32[C, M]: number r * columns + t in the array's share; out of range if it has none
    places: jax.Array  # int32[C, rows * columns]: place in the list; out of range if it is not live
    columns: int

    def pack(self, x: jax.Array) -> jax.Array:
        """Rows [C * rows, columns, ...] -> lists [C, M, ...]; zeros for a token that the rows do
        not hold.
        """
        shards = self.slots.shape[0]
        return _move(x.reshape((shards, -1) + x.shape[2:]), self.slots, self.places)

    def unpack(self, x: jax.Array) -> jax.Array:
        """Lists [C, M, ...] -> rows [C * rows, columns, ...]; zeros where a token is not live."""
        return _move(x, self.places, self.slots).reshape((-1, self.columns) + x.shape[2:])


def make_packing(
    live: PackedTokens, columns: int, rows: int | None = None, begin: jax.Array | None = None
) -> Packing:
    """The packing of arrays with so many columns.

    Args:
      live: The tokens in the lists.
      columns: Columns of the arrays.
      rows: Rows of the arrays in each share, which begin with those of `live`; None for as many.
      begin: int32[R], the column of each row that is the first of the arrays; None for 0. May be
        negative.
    """
    shards = live.segment_ids.shape[0]
    in_all = live.first.shape[0] // shards
    rows = in_all if rows is None else rows
    starts, _ = _extents(live.first, live.last, shards)
    first, last, begin = (
        x.reshape(shards, in_all)
        for x in (live.first, live.last, jnp.zeros_like(live.first) if begin is None else begin)
    )
    column = live.positions - jnp.take_along_axis(
        begin, jnp.minimum(live.segment_ids, in_all - 1), axis=1
    )
    inside = (live.segment_ids < rows) & (column >= 0) & (column < columns)
    slots = jnp.where(inside, live.segment_ids * columns + column, rows * columns)

    first, last, begin, starts = (x[:, :rows, None] for x in (first, last, begin, starts))
    column = begin + jnp.arange(columns, dtype=jnp.int32)[None, None]
    inside = (column >= first) & (column < last)
    places = jnp.where(inside, starts + column - first, live.segment_ids.shape[1])
    return Packing(slots, places.reshape(shards, rows * columns), columns)


@jax.custom_vjp
def _move(x: jax.Array, to: jax.Array, back: jax.Array) -> jax.Array:
    """x [C, A, ...] at the numbers `to` [C, A'], zeros for one that is out of range.

    `back` is the inverse of `to`, so that the gradient is a reading too: adding at numbers is slow.
    """
    return jax.vmap(lambda y, numbers: jnp.take(y, numbers, axis=0, mode="fill", fill_value=0))(
        x, to
    )


def _move_forward(x: jax.Array, to: jax.Array, back: jax.Array) -> tuple[jax.Array, tuple]:
    return _move(x, to, back), (to, back)


def _move_backward(residuals: tuple, dy: jax.Array) -> tuple:
    to, back = residuals
    return _move(dy, back, to), None, None


_move.defvjp(_move_forward, _move_backward)
