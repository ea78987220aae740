"""A mini-batch in parts that fit the memory, each of rows of like length.

Padding costs as much as tokens do. So rows are taken longest first, as many at a time as a budget of tokens
allows, and cut to one of a few lengths: these are the shapes that are compiled, and how often each is run is
decided on the device. What is computed does not depend on it, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.types import TrainBatch

# Lengths that are compiled, as shares of the longest possible: each costs a compilation, and compiling is
# most of what the first step of a small model takes.
_SHARES = (1 / 4, 1 / 2, 1)
_LENGTH_MULTIPLE = 8

Step = Callable[[Any, TrainBatch, Any, jax.Array], Any]


class Bucket(NamedTuple):
    """The shape of a part."""

    length: int
    rows: int


def buckets(rows: int, length: int, tokens: int | None) -> tuple[Bucket, ...]:
    """The shapes of parts, from short to long.

    Args:
      rows: Rows of the whole.
      length: Length of its rows, prompt and completion.
      tokens: Tokens of a part, padding included; None for all rows at once.

    Raises:
      ValueError: If not even one row fits.
    """
    if tokens is None:
        return (Bucket(length, rows),)
    if tokens < length:
        raise ValueError(f"tokens_per_micro_batch: {tokens} is not allowed; allowed: >= {length}, one row")
    multiple = _LENGTH_MULTIPLE
    lengths = {min(length, -(-int(share * length) // multiple) * multiple) for share in _SHARES} - {0}
    return tuple(Bucket(cut, min(rows, tokens // cut)) for cut in sorted(lengths))


def fold_micro_batches(
    step: Step, start: Any, batch: TrainBatch, extra: Any, counts: jax.Array, tokens: int | None
) -> Any:
    """Folds a function over the parts of a mini-batch.

    Args:
      step: (carry, part, extra of the part, numbers of its rows) -> carry. Each part has the rows of the
        batch with these numbers, its columns cut to what they need. A row that fills up a part has a number
        out of range and nothing in it that counts. A step must not change the carry's shapes.
      start: The first carry.
      batch: The mini-batch.
      extra: More arrays of it, a nest of [B], [B, 1] or [B, N].
      counts: bool[B], the rows that are needed.
      tokens: Tokens of a part, padding included; None for all rows at once.

    Returns:
      The last carry.
    """
    rows, length = batch.ids.shape
    new = batch.completion_ids.shape[1]
    shapes = buckets(rows, length, tokens)
    lengths = batch.prompt_length + batch.completion_mask.sum(-1, dtype=jnp.int32)
    lengths = jnp.where(counts, lengths, 0)
    order = jnp.argsort(-lengths, stable=True).astype(jnp.int32)
    order = jnp.where(jnp.arange(rows) < counts.sum(), order, rows)
    order = jnp.pad(order, (0, max(bucket.rows for bucket in shapes)), constant_values=rows)

    def take(x: jax.Array, numbers: jax.Array, cut: int) -> jax.Array:
        if x.ndim > 1:
            x = x[:, : {length: cut, new: min(cut, new)}.get(x.shape[1])]
        return jnp.take(x, numbers, axis=0, mode="fill", fill_value=0)

    def run(bucket: Bucket, first: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        numbers = jax.lax.dynamic_slice_in_dim(order, first, bucket.rows)
        part, more = jax.tree.map(lambda x: take(x, numbers, bucket.length), (batch, extra))
        part = part.replace(prompt_length=jnp.maximum(part.prompt_length, 1))  # a prompt has a last token
        return first + bucket.rows, step(carry, part, more, numbers)

    def next_part(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        first, carry = state
        longest = lengths[order[first]]
        which = jnp.searchsorted(jnp.array([bucket.length for bucket in shapes]), longest)
        branches = [lambda f, c, bucket=bucket: run(bucket, f, c) for bucket in shapes]
        return jax.lax.switch(which, branches, first, carry)

    _, carry = jax.lax.while_loop(lambda state: state[0] < counts.sum(), next_part, (jnp.int32(0), start))
    return carry
