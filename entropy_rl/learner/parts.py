"""A mini-batch in parts that fit the memory.

A part is a list of live tokens, and takes as many rows as fit into it: so many tokens are computed
whatever the lengths are. Rows come longest first, because attention, which needs them side by side,
is computed in the smallest of a few shapes that holds the rows of a part. How often which shape
runs is decided on the device. What is computed does not depend on it, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.models.packing import pack_tokens
from entropy_rl.types import PackedTokens

# Lengths that are compiled, as shards of the longest possible.
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
_LENGTH_MULTIPLE = 8
# Columns of a shape over the live tokens of a part: how many rows attention has room for.
_COLUMNS_PER_TOKEN = 2


class Rows(NamedTuple):
    """Rows, and which columns of them are to be computed."""

    arrays: Any  # a nest of [B, ...]
    first: jax.Array  # int32[B]
    last: jax.Array  # int32[B]; first where a row is not needed


class Part(NamedTuple):
    """Some of the rows. One that only fills up has no live token, and zeros in its arrays."""

    arrays: Any
    numbers: (
        jax.Array | None
    )  # int32[C, R / C], those of the rows in their share; None for the whole
    live: PackedTokens | None  # None for everything

    def take(self, whole: jax.Array) -> jax.Array:
        """The part's rows [R, ...] of an array [B, ...]; zeros where a row only fills up."""
        return _take(whole, self.numbers)

    def put(self, whole: jax.Array, values: jax.Array) -> jax.Array:
        """Writes values [R, ...] into the part's rows of an array [B, ...]."""
        if self.numbers is None:
            return values
        put = jax.vmap(lambda w, n, v: w.at[n].set(v, mode="drop"))
        split = lambda x: x.reshape((self.numbers.shape[0], -1) + x.shape[1:])  # noqa: E731
        return put(split(whole), self.numbers, split(values)).reshape(whole.shape)


def _take(x: jax.Array, numbers: jax.Array) -> jax.Array:
    x = x.reshape((numbers.shape[0], -1) + x.shape[1:])
    x = jax.vmap(lambda y, n: jnp.take(y, n, axis=0, mode="fill", fill_value=0))(x, numbers)
    return x.reshape((-1,) + x.shape[2:])


class Shape(NamedTuple):
    """Rows side by side, in each share."""

    columns: int
    rows: int


def part_shapes(
    rows: int, length: int, tokens: int, shards: tuple[float, ...] = _SHARES
) -> tuple[Shape, ...]:
    """The shapes of parts, from short to long.

    Args:
      rows: Rows of a share.
      length: Length of the longest.
      tokens: Live tokens of a part, in each share.
      shards: Lengths, as shards of `length`.

    Raises:
      ValueError: If not even one row fits.
    """
    if tokens < length:
        raise ValueError(
            f"max_tokens_per_micro_batch: must be >= {length}, the length of a row, got {tokens}"
        )
    multiple = _LENGTH_MULTIPLE
    lengths = {min(length, -(-int(share * length) // multiple) * multiple) for share in shards} - {
        0
    }
    return tuple(
        Shape(columns, min(rows, _COLUMNS_PER_TOKEN * tokens // columns))
        for columns in sorted(lengths)
    )


def fold_micro_batches(
    step: Callable[[Any, Part], Any],
    start: Any,
    rows: Rows,
    shapes: tuple[Shape, ...],
    tokens: int,
    shards: int = 1,
) -> Any:
    """Folds a function over the parts of a mini-batch.

    Args:
      step: (carry, part) -> carry; each row with a live token is in one part.
      start: The first carry.
      rows: The mini-batch.
      shapes: From `part_shapes`.
      tokens: Live tokens of a part, in each share.
      shards: Equal shards in which the rows lie on the devices; a part takes its rows from all of
        them.

    Returns:
      The last carry.
    """
    live, last = (x.reshape(shards, -1) for x in (rows.last - rows.first, rows.last))
    in_share = live.shape[1]
    needed = (live > 0).sum(-1)
    lengths = jnp.where(live > 0, last, 0)
    order = jnp.argsort(-lengths, axis=1, stable=True).astype(jnp.int32)
    lengths, live = (jnp.take_along_axis(x, order, axis=1) for x in (lengths, live))
    begin = jnp.pad(jnp.cumsum(live, axis=1), ((0, 0), (1, 0)))  # live tokens of the rows before
    most = max(shape.rows for shape in shapes)
    order = jnp.pad(order, ((0, 0), (0, most)), constant_values=in_share)
    lengths = jnp.pad(lengths, ((0, 0), (0, 1)))

    def at(x: jax.Array, place: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, place[:, None], axis=1)[:, 0]

    def next_part(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        place, carry = state
        which = jnp.searchsorted(jnp.array([s.columns for s in shapes]), at(lengths, place).max())
        full = jax.vmap(lambda b, limit: jnp.searchsorted(b, limit, side="right") - 1)(
            begin, at(begin, place) + tokens
        )
        stop = jnp.minimum(
            jnp.minimum(full, place + jnp.array([s.rows for s in shapes])[which]), needed
        )
        numbers = jax.vmap(lambda o, p: jax.lax.dynamic_slice_in_dim(o, p, most))(order, place)
        numbers = jnp.where(
            place[:, None] + jnp.arange(most)[None] < stop[:, None], numbers, in_share
        )
        arrays, first, last = jax.tree.map(lambda x: _take(x, numbers), rows)
        tokens_of_part = pack_tokens(first, last, which, shapes, room=tokens, shards=shards)
        return stop, step(carry, Part(arrays, numbers, tokens_of_part))

    place = jnp.zeros(shards, needed.dtype)
    _, carry = jax.lax.while_loop(
        lambda state: (state[0] < needed).any(), next_part, (place, start)
    )
    return carry
