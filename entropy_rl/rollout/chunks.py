"""A rollout in chunks: the host looks at it now and then, and decides what comes next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from entropy_rl.rollout.batching import DecodingPlan, column_counts, row_counts
from entropy_rl.rollout.programs import Programs
from entropy_rl.rollout.state import Columns, Request, State, View
from entropy_rl.types import FinishReason, Params, Rollout


class Stage(NamedTuple):
    """How far a rollout is.

    Attributes:
      finished: Rows that have ended.
      rows: All rows.
      tokens: Tokens of the longest row that is being decoded.
      slots: Rows that are decoded side by side.
      columns: New tokens of each that the cache has room for.
    """

    finished: int
    rows: int
    tokens: int
    slots: int
    columns: int


class StopRule(Protocol):
    """Decides on the host where a completion ends early.

    Attributes:
      overlap: Tokens before the new ones that it must see again.
    """

    overlap: int

    def __call__(self, ids: Sequence[int]) -> int | None:
        """How many of these tokens are kept, the last of them ending it; None to go on."""


def generate_in_chunks(
    programs: Programs,
    decoding: DecodingPlan,
    params: Params,
    prompts: tuple,
    key: jax.Array,
    first_sample: jax.Array | int,
    on_chunk: Callable[[Stage], None] | None,
    on_tokens: Callable[[Columns], None] | None,
    stop: StopRule | None,
) -> Rollout:
    """The host's loop: look, move what is alive into the smallest slots and columns that hold it,
    go on.
    """
    all_rows = len(prompts[0]) * programs.sampling.group_size
    sizes, rooms = row_counts(decoding.slots), column_counts(programs.sampling.max_new_tokens)
    rows, columns = sizes[0], rooms[0]
    params = programs.to_decode(params)
    request, state, look = programs.begin(rows, columns, params, prompts, key, first_sample)
    while True:
        if stop is not None:
            state, look = _stop_alive(programs, request, state, stop, decoding.chunk_steps)
        alive, t, waiting = (int(x) for x in jax.device_get(look))
        if on_chunk is not None:
            on_chunk(Stage(all_rows - waiting - alive, all_rows, t, rows, columns))
        if on_tokens is not None:
            on_tokens(jax.device_get(programs.known(state)))
        if alive == 0:
            break
        # While rows wait, every slot has one.
        wanted = rows if waiting else min(size for size in sizes if size >= alive)
        room = min(room for room in rooms if room >= max(t, columns))
        if (wanted, room) != (rows, columns):
            state = programs.move(state, wanted, room)
            rows, columns = wanted, room
        # Sampling column t needs the cache of the t columns before it.
        steps = min(decoding.chunk_steps, columns - t + 1)
        fewer = max((size for size in sizes if size < rows), default=0)
        state, look = programs.go_on(params, request, state, steps, fewer)
    rollout = programs.finish(request, state)
    return rollout if stop is None else _stop_ended(programs, rollout, stop, decoding.chunk_steps)


def _stop_alive(
    programs: Programs, request: Request, state: State, stop: StopRule, new: int
) -> tuple[State, View]:
    """Ends rows that came to contain a stop string: that saves their further tokens."""
    width = new + stop.overlap
    ids, ends, alive = jax.device_get(programs.tails(state, width))
    return programs.cut(request, state, _kept(stop, ids, ends, np.flatnonzero(alive)))


def _stop_ended(programs: Programs, rollout: Rollout, stop: StopRule, new: int) -> Rollout:
    """Cuts rows that ended in another way, but after a stop string that no look had found yet."""
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
    return programs.trim(
        rollout, _kept(stop, tails, lengths, np.flatnonzero(reason != FinishReason.STOP))
    )


def _kept(stop: StopRule, tails: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int32[rows]: how many tokens are kept of a row with a stop string in its last ones; -1
    otherwise.
    """
    kept = np.full(len(lengths), -1, np.int32)
    for row in rows:
        length, width = int(lengths[row]), tails.shape[1]
        before = max(0, length - width)
        found = stop(tails[row, : length - before].tolist())
        if found is not None:
            kept[row] = before + found
    return kept
