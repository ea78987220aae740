"""Vocabulary entries without a token: excluded from sampling, log-probs and entropies.

Models pad their vocabulary (Qwen2.5 has 151,936 rows for 151,665 tokens). A token of such an id has
no text: it would be rewarded unseen, and count in every entropy.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

# Half-open ranges of ids, ascending and disjoint.
Ranges = tuple[tuple[int, int], ...]


@struct.dataclass
class HeadWeights:
    """Head weights of which some rows are no token: their probability is zero.

    The rows stay in place, so that the weights keep their sharding and no copy is made.
    """

    weights: jax.Array  # [V, D]
    unused: Ranges = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return self.weights.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the weights."""
        return self.weights.dtype


def split_head(head: jax.Array | HeadWeights) -> tuple[jax.Array, Ranges]:
    """Return the weights [V, D] of a head, and the ranges of ids that are no token."""
    return (head.weights, head.unused) if isinstance(head, HeadWeights) else (head, ())


def resize_head(head: jax.Array | HeadWeights, rows: int) -> HeadWeights:
    """Pad a head to a number of rows; the additional ones are no token.

    Args:
      head: [V, D], V <= rows.
      rows: The number of rows.

    Returns:
      [rows, D]; adjacent ranges of unused ids are joined.
    """
    weights, unused = split_head(head)
    size = weights.shape[0]
    if size < rows:
        weights = jnp.pad(weights, ((0, rows - size), (0, 0)))
        unused = (*unused, (size, rows))
    joined: list[tuple[int, int]] = []
    for first, end in unused:
        if joined and joined[-1][1] == first:
            first = joined.pop()[0]
        joined.append((first, end))
    return HeadWeights(weights, tuple(joined))


def unused_ranges(token_ids: Iterable[int], vocab_size: int) -> Ranges:
    """Return the ranges of 0 .. vocab_size - 1 that are not among the ids."""
    used = np.zeros(vocab_size + 2, bool)
    used[[0, -1]] = True  # borders
    used[np.fromiter(token_ids, np.int64) + 1] = True
    steps = np.diff(used.astype(np.int8))
    starts, ends = np.flatnonzero(steps == -1), np.flatnonzero(steps == 1)
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))


def is_unused(ids: jax.Array | np.ndarray, unused: Ranges) -> jax.Array | np.ndarray:
    """Return bool, in the shape of the ids: whether an id is in one of the ranges."""
    found = ids < 0
    for first, end in unused:
        found = found | ((ids >= first) & (ids < end))
    return found
