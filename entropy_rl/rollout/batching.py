"""Which rows are decoded when, and with how much room: chosen by memory, and by what is left to
do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import jax

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.types import Params, Policy

# Attention is over the smallest of these shards of the columns that holds what there is, and the
# number of slots falls by a factor. Each combination that occurs is a program to be compiled: for
# large models that takes long.
_COLUMN_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
_COLUMN_MULTIPLE = 64
_WORTH_LESS = 3 / 4  # of all columns: more would save little
_SHRINK = {"cpu": 2}
_SHRINK_OTHERWISE = 4
_LEAST_ROWS = 16  # fewer take as long
_ROW_MULTIPLE = 8
_MOVING = 1.5  # rows that move into fewer slots are there twice


class DecodingPlan(NamedTuple):
    """How a rollout of B rows is done.

    Attributes:
      kind: "static", "shrink" or "refill".
      slots: Rows decoded side by side at first.
      chunk_steps: Steps after which the host has a look; None does everything in one program.
    """

    kind: Literal["static", "shrink", "refill"]
    slots: int
    chunk_steps: int | None


def choose(config: DecodingConfig, rows: int, fits: Callable[[], int]) -> DecodingPlan:
    """Turns a config into a decoding: all rows at once if they fit, and otherwise as many as do.

    Args:
      config: The `decoding` section.
      rows: B.
      fits: Finds out how many rows the memory holds.
    """
    kind = config.kind
    if kind == "auto":
        kind = "shrink" if rows <= fits() else "refill"
    if kind == "static":
        return DecodingPlan("static", rows, None)
    slots = rows
    if kind == "refill":
        slots = max(1, fits()) if config.slots is None else config.slots
        if slots > _ROW_MULTIPLE:
            slots -= slots % _ROW_MULTIPLE
    return DecodingPlan(kind, min(slots, rows), config.chunk_steps)


def rows_that_fit(memory: float, shared_bytes: int, bytes_per_row: int) -> int:
    """How many rows can be decoded side by side.

    Args:
      memory: Bytes for all of it.
      shared_bytes: Of the cache of the prompts, which is there once.
      bytes_per_row: Of the cache of a row, its own copy of the prompt included.
    """
    return max(0, int((memory - shared_bytes) / (_MOVING * max(bytes_per_row, 1))))


def cache_bytes(policy: Policy, params: Params, length: int, columns: int) -> int:
    """Bytes of the cache of one row, with `length` tokens of prompt and room for `columns` more."""
    ids = jax.ShapeDtypeStruct((1, length), "int32")
    mask = jax.ShapeDtypeStruct((1, length), "bool")
    _, prompt = jax.eval_shape(
        lambda p, i, m: policy.prefill(policy.to_decode(p), i, m), params, ids, mask
    )
    rows = jax.eval_shape(lambda: policy.empty_rows(1, columns))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((prompt, rows)))


def device_memory(devices: Collection[jax.Device]) -> int:
    """Bytes of memory of some devices. It is that of the machine for CPU devices, which share it.

    Raises:
      ValueError: If a device does not tell.
    """
    if next(iter(devices)).platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if None in limits:
        raise ValueError(
            "decoding.kind: the device hides its memory; allowed: shrink, static, refill"
        )
    return sum(limits)


def row_counts(slots: int) -> list[int]:
    """The numbers of slots that are compiled, from all of them down."""
    factor = _SHRINK.get(jax.default_backend(), _SHRINK_OTHERWISE)
    counts = [slots]
    while counts[-1] > _LEAST_ROWS:
        fewer = -(-counts[-1] // factor)
        counts.append(max(-(-fewer // _ROW_MULTIPLE) * _ROW_MULTIPLE, _LEAST_ROWS))
    return counts


def column_counts(columns: int) -> list[int]:
    """The room for new tokens that is compiled, from little to all."""
    counts = {
        -(-int(share * columns) // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE for share in _COLUMN_SHARES
    }
    return [*sorted(count for count in counts if 0 < count <= _WORTH_LESS * columns), columns]
