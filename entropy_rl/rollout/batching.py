"""Continuous batching: the number of decoding slots, and the array shapes that are compiled."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import jax

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.types import Params, Policy

# The cache has the smallest of these fractions of all columns that holds the tokens so far, and
# the number of slots falls by a factor. Each combination that occurs is a program to be compiled,
# which takes long for large models.
_COLUMN_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1)
_COLUMN_MULTIPLE = 64
_MAX_PARTIAL_FRACTION = 3 / 4  # of all columns: a larger cache would save little
_SHRINK_FACTOR = {"cpu": 2}
_DEFAULT_SHRINK_FACTOR = 4
_MIN_ROWS = 16  # fewer rows take as long
_ROW_MULTIPLE = 8
_MOVE_OVERHEAD = 1.5  # rows that move into fewer slots are in memory twice


class DecodingPlan(NamedTuple):
    """How the B rows of a rollout are decoded.

    Attributes:
      kind: "compact", every row has a slot and finished rows are compacted away; "refill", fewer
        slots than rows, and queued rows take the slots of finished ones; "static", every row is
        decoded until the longest has finished (the reference of the tests).
      slots: Rows decoded side by side at the start.
      chunk_steps: Decode steps between host synchronizations; None for one program.
    """

    kind: Literal["static", "compact", "refill"]
    slots: int
    chunk_steps: int | None


def plan_decoding(config: DecodingConfig, rows: int, fits: Callable[[], int]) -> DecodingPlan:
    """Plan the decoding of a rollout: all rows at once if they fit, otherwise with a queue.

    Args:
      config: The `decoding` section.
      rows: B.
      fits: Returns the number of rows that fit into memory; called if `config.slots` is None.
    """
    slots = max(1, fits()) if config.slots is None else config.slots
    if slots >= rows:
        return DecodingPlan("compact", rows, config.chunk_steps)
    if slots > _ROW_MULTIPLE:
        slots -= slots % _ROW_MULTIPLE
    return DecodingPlan("refill", slots, config.chunk_steps)


def describe_decoding(rows: int, slots: int) -> str:
    """Describe in one line, for the log, how the rows of a rollout are decoded."""
    if slots >= rows:
        return f"decoding: {rows} rows at once, finished ones compacted away"
    return f"decoding: {rows} rows in {slots} slots, finished ones replaced by queued ones"


def rows_that_fit(
    memory: float,
    rows: int,
    prompts: int,
    prompt_bytes: int,
    row_bytes: int,
    growth: float = 0.0,
    adapters: int = 1,
) -> int:
    """Return how many of the rows of a rollout can be decoded side by side.

    If all rows have slots, those of a group share the cache of their prompt until finished rows are
    compacted away. Otherwise each slot has its own copy, and the queue another.

    Args:
      memory: Bytes for the whole cache.
      rows: B.
      prompts: P.
      prompt_bytes: Size of the cache of a prompt.
      row_bytes: Size of the cache of a row's new tokens.
      growth: Size of the cache before it grows for the last time, as a fraction of the last size.
      adapters: As in `row_counts`.
    """
    own = prompt_bytes + row_bytes
    sizes = [n * own for n in row_counts(rows, adapters)]
    sizes[0] = prompts * prompt_bytes + rows * row_bytes
    # Rows that move into fewer slots are in memory twice, as are those whose cache grows.
    most = max(before + after for before, after in itertools.pairwise([*sizes, 0]))
    if max(most, sizes[0] + growth * rows * row_bytes) <= memory:
        return rows
    slots = int((memory - prompts * prompt_bytes) / (_MOVE_OVERHEAD * max(own, 1)))
    return max(0, min(slots, rows - 1))


def cache_bytes(
    policy: Policy, params: Params, length: int, columns: int, adapters: int = 1
) -> int:
    """Return the cache size of one row, in bytes.

    Args:
      policy: The model.
      params: Its parameters, or their shapes.
      length: Prompt tokens.
      columns: New tokens.
      adapters: K, of stacked adapters in the parameters.
    """
    ids = jax.ShapeDtypeStruct((adapters, length), "int32")
    mask = jax.ShapeDtypeStruct((adapters, length), "bool")
    _, prompt = jax.eval_shape(
        lambda p, i, m: policy.prefill(policy.to_decode(p), i, m), params, ids, mask
    )
    rows = jax.eval_shape(lambda: policy.empty_rows(adapters, columns))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((prompt, rows)))
    return size // adapters


def device_memory(devices: Collection[jax.Device]) -> int:
    """Return the total memory of devices, in bytes; CPU devices share that of the machine.

    Raises:
      ValueError: If a device does not report its memory.
    """
    if next(iter(devices)).platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if None in limits:
        raise ValueError(
            "decoding.slots: must be a number on devices that do not report their memory, got None"
        )
    return sum(limits)


def row_counts(slots: int, adapters: int = 1) -> list[int]:
    """Return the numbers of slots that are compiled, in descending order.

    Args:
      slots: The first of them.
      adapters: All are divisible by it.
    """
    factor = _SHRINK_FACTOR.get(jax.default_backend(), _DEFAULT_SHRINK_FACTOR)
    counts = [slots]
    while counts[-1] > _MIN_ROWS:
        fewer = -(-counts[-1] // factor)
        fewer = max(-(-fewer // _ROW_MULTIPLE) * _ROW_MULTIPLE, _MIN_ROWS)
        fewer = -(-fewer // adapters) * adapters
        if fewer >= counts[-1]:
            break
        counts.append(fewer)
    return counts


def column_counts(columns: int) -> list[int]:
    """Return the cache lengths, in new tokens, that are compiled, in ascending order."""
    counts = {
        -(-int(fraction * columns) // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE
        for fraction in _COLUMN_FRACTIONS
    }
    return [
        *sorted(count for count in counts if 0 < count <= _MAX_PARTIAL_FRACTION * columns),
        columns,
    ]
