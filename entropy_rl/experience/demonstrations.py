"""Batches of demonstrations for SFT, as a pure function of (seed, block)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from entropy_rl.experience.padding import pad_rows
from entropy_rl.tasks.task import DemonstratedTask

# Demonstrations are sorted by length within a block of this many batches: little padding, and the
# order stays random on the scale of blocks.
BATCHES_PER_BLOCK = 64


def batch_block(
    task: DemonstratedTask,
    encode: Callable[[str], Sequence[int]],
    *,
    seed: int,
    block: int,
    batch_size: int,
    length_buckets: Sequence[int],
    pad_id: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of one block of demonstrations.

    Args:
      task: Where they come from.
      encode: (text of a piece) -> its token ids, without special tokens.
      seed: Seed of the demonstrations and of the order of the batches.
      block: Which block; blocks follow one another without overlap.
      batch_size: Rows of a batch.
      length_buckets: Allowed lengths, growing.
      pad_id: Fills the rows.

    Returns:
      BATCHES_PER_BLOCK pairs (ids int32[batch_size, T], weights f32[batch_size, T]), with T one of
      the buckets; weights[b, t] is that of predicting ids[b, t] and 0 on the prompt.

    Raises:
      ValueError: If a demonstration is longer than the last bucket.
    """
    size = BATCHES_PER_BLOCK * batch_size
    rows = []
    for index in range(block * size, (block + 1) * size):
        demonstration = task.demonstration(seed, index)
        ids = list(encode(demonstration.prompt))
        weights = [0.0] * len(ids)
        for piece, weight in zip(demonstration.pieces, demonstration.weights, strict=True):
            piece_ids = encode(piece)
            ids += piece_ids
            weights += [weight] * len(piece_ids)
        rows.append((ids, weights))
    rows.sort(key=lambda row: len(row[0]))
    if len(rows[-1][0]) > length_buckets[-1]:
        raise ValueError(
            f"length_buckets: a demonstration has {len(rows[-1][0])} tokens; "
            f"the last one must not be less, and is {length_buckets[-1]}"
        )
    batches = []
    for start in range(0, size, batch_size):
        part = rows[start : start + batch_size]
        length = next(bucket for bucket in length_buckets if bucket >= len(part[-1][0]))
        ids = pad_rows([ids for ids, _ in part], length, pad_id, np.int32)
        batches.append((ids, pad_rows([weights for _, weights in part], length, 0, np.float32)))
    order = np.random.default_rng([seed, block]).permutation(len(batches))
    return [batches[i] for i in order]
