"""Chunked decoding loop with host callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from entropy_rl.rollout.batching import DecodingPlan, column_counts, row_counts
from entropy_rl.rollout.programs import SamplerPrograms
from entropy_rl.rollout.state import Completions, Request, State, Status
from entropy_rl.types import FinishReason, Params, Rollout


class DecodingProgress(NamedTuple):
    """Progress of a rollout at a host synchronization.

    Attributes:
      finished: Rows that have finished.
      rows: All rows.
      tokens: Tokens of the longest unfinished row.
      slots: Rows decoded side by side.
      columns: New tokens per row that the cache has room for.
    """

    finished: int
    rows: int
    tokens: int
    slots: int
    columns: int


class StopRule(Protocol):
    """Finds on the host where a completion must end early.

    Attributes:
      overlap: Number of earlier tokens that it must see again with every chunk of new ones.
    """

    overlap: int

    def __call__(self, ids: Sequence[int]) -> int | None:
        """Return the number of tokens to keep, the last of which ends the completion; None to
        go on.
        """


def generate_in_chunks(
    programs: SamplerPrograms,
    decoding: DecodingPlan,
    params: Params,
    prompts: tuple,
    key: jax.Array,
    first_sample: jax.Array | int,
    on_chunk: Callable[[DecodingProgress], None] | None,
    on_tokens: Callable[[Completions], None] | None,
    stop: StopRule | None,
) -> Rollout:
    """Decode in chunks; between them, unfinished rows move into the smallest compiled number of
    slots, and the cache grows to the smallest compiled length, that holds them.
    """
    sampling = programs.sampling
    all_rows = len(prompts[0]) * sampling.group_size
    sizes = row_counts(decoding.slots, sampling.adapters)
    lengths = column_counts(sampling.max_new_tokens)
    rows, columns = sizes[0], lengths[0]
    params = programs.to_decode(params)
    request, state, status = programs.begin(rows, columns, params, prompts, key, first_sample)
    while True:
        if stop is not None:
            state, status = _stop_alive(programs, request, state, stop, decoding.chunk_steps)
        alive, t, waiting = (int(x) for x in jax.device_get(status))
        if on_chunk is not None:
            on_chunk(DecodingProgress(all_rows - waiting - alive, all_rows, t, rows, columns))
        if on_tokens is not None:
            on_tokens(jax.device_get(programs.partial(state)))
        if alive == 0:
            break
        # While rows wait in the queue, every slot is in use.
        fewer_rows = rows if waiting else min(size for size in sizes if size >= alive)
        more_columns = min(length for length in lengths if length >= max(t, columns))
        if (fewer_rows, more_columns) != (rows, columns):
            state = programs.resize(state, fewer_rows, more_columns)
            rows, columns = fewer_rows, more_columns
        # Sampling column t needs the cache of the t columns before it.
        steps = min(decoding.chunk_steps, columns - t + 1)
        until_alive = max((size for size in sizes if size < rows), default=0)
        state, status = programs.decode(params, request, state, steps, until_alive)
    rollout = programs.finish(request, state)
    return rollout if stop is None else _stop_ended(programs, rollout, stop, decoding.chunk_steps)


def _stop_alive(
    programs: SamplerPrograms, request: Request, state: State, stop: StopRule, new: int
) -> tuple[State, Status]:
    """End unfinished rows that contain a stop string."""
    width = new + stop.overlap
    ids, ends, alive = jax.device_get(programs.tails(state, width))
    return programs.stop(request, state, _stop_lengths(stop, ids, ends, np.flatnonzero(alive)))


def _stop_ended(programs: SamplerPrograms, rollout: Rollout, stop: StopRule, new: int) -> Rollout:
    """Truncate rows that reached EOS or the limit in their last chunk, after a stop string."""
    ids, mask, reason = jax.device_get(
        (rollout.completion_ids, rollout.completion_mask, rollout.finish_reason)
    )
    lengths, width = mask.sum(-1), new + stop.overlap
    tails = np.stack(
        [
            row[max(0, n - width) : max(0, n - width) + width]
            for row, n in zip(ids, lengths, strict=True)
        ]
    )
    return programs.truncate(
        rollout, _stop_lengths(stop, tails, lengths, np.flatnonzero(reason != FinishReason.STOP))
    )


def _stop_lengths(
    stop: StopRule, tails: np.ndarray, lengths: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return int32[rows]: the length up to and including the first stop string; -1 without one."""
    stops = np.full(len(lengths), -1, np.int32)
    for row in rows:
        length, width = int(lengths[row]), tails.shape[1]
        before = max(0, length - width)
        found = stop(tails[row, : length - before].tolist())
        if found is not None:
            stops[row] = before + found
    return stops
