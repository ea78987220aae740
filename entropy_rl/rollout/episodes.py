"""Decoding of episodes of several turns, between which an environment on the host answers.

A row whose turn has ended is parked: it keeps its slot and its cache while other rows go on. The
answer, an observation, is appended to the same row, so that no token is computed twice, and the
row samples its next turn. When that is depends on the tokens alone, and not on how long an
environment takes: the answer to a turn that ended in one chunk is waited for after the next chunk,
or at once if no row is in a turn. So a rollout repeats to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np

from entropy_rl.rollout.batching import DecodingPlan, column_counts, row_counts
from entropy_rl.rollout.chunks import DecodingProgress, StopRule
from entropy_rl.rollout.programs import SamplerPrograms
from entropy_rl.rollout.state import Completions, State
from entropy_rl.rollout.turns import TurnPrograms, TurnView
from entropy_rl.types import FinishReason, Params, Rollout

# Tokens of observations that are computed at once in a row, and factor between the numbers of rows
# that are computed at once. Each combination is a program to be compiled.
_CHUNKS = (8, 32, 128)
_SHRINK = 4
_MIN_ROWS = 4
_MAX_TOKENS = 2**16


class Environments(Protocol):
    """Answers the turns of the rows of a rollout."""

    def submit(self, row: int, ids: Sequence[int], reason: FinishReason, room: int) -> None:
        """Take a turn that has ended, without waiting for the answer.

        Args:
          row: The row.
          ids: The tokens of the turn.
          reason: Why it ended.
          room: Tokens that the row may still get.
        """

    def reply(self, row: int) -> Sequence[int] | FinishReason:
        """Wait for the answer to the last turn of a row.

        Returns:
          The tokens of the observation, fewer than `room`; or why the episode has ended.
        """


def generate_episodes(
    programs: SamplerPrograms,
    turns: TurnPrograms,
    decoding: DecodingPlan,
    params: Params,
    prompts: tuple,
    key: jax.Array,
    first_sample: jax.Array | int,
    environments: Environments,
    on_chunk: Callable[[DecodingProgress], None] | None,
    on_tokens: Callable[[Completions], None] | None,
    stop: StopRule | None,
) -> Rollout:
    """Decode episodes in chunks, and have their turns answered between the chunks."""
    sampling = programs.sampling
    limits = np.minimum(jax.device_get(prompts[3]), sampling.max_new_tokens)
    limits = np.repeat(limits, sampling.group_size)
    sizes, lengths = row_counts(decoding.slots), column_counts(sampling.max_new_tokens)
    rows, columns = sizes[0], lengths[0]
    params = programs.to_decode(params)
    request, state, status = programs.begin(rows, columns, params, prompts, key, first_sample)
    submitted: set[int] = set()  # rows that wait for an answer
    while True:
        alive, _, waiting = (int(x) for x in jax.device_get(status))
        view = jax.device_get(turns.view(state))
        if stop is not None:
            state, view = _stop_turns(turns, state, view, stop, decoding.chunk_steps)
        if on_chunk is not None:
            longest = int(view.t[view.alive].max(initial=0))
            on_chunk(
                DecodingProgress(len(limits) - waiting - alive, len(limits), longest, rows, columns)
            )
        if on_tokens is not None:
            on_tokens(jax.device_get(programs.partial(state)))
        replies = _exchange(environments, view, limits, submitted)
        reasons = np.full(rows, -1, np.int32)
        observations: dict[int, Sequence[int]] = {}
        for slot, reply in replies.items():
            if isinstance(reply, FinishReason):
                reasons[slot] = reply
            else:
                observations[slot] = reply
        t = view.t.copy()
        in_turn = view.alive & ~view.parked
        for slot, ids in observations.items():
            t[slot] += len(ids)
            in_turn[slot] = True
        # Sampling column t needs the cache of the t columns before it.
        longest = int(t[in_turn].max(initial=0))
        if longest > columns:
            columns = min(length for length in lengths if length >= longest)
            state = programs.resize(state, rows, columns)
        state = _observe(turns, params, state, view, observations)
        if len(observations) < len(replies):
            state, status = turns.end(request, state, reasons)
            new_alive, _, waiting = (int(x) for x in jax.device_get(status))
            # Rows of the queue have begun in slots that were free.
            active = int(in_turn.sum()) + new_alive - (alive - int((reasons >= 0).sum()))
            alive = new_alive
        else:
            active = int(in_turn.sum())
        if alive == 0:
            break
        fewer_rows = rows if waiting else min(size for size in sizes if size >= alive)
        if fewer_rows != rows:
            state = programs.resize(state, fewer_rows, columns)
            rows = fewer_rows
        steps = min(decoding.chunk_steps, columns - longest + 1)
        # A step takes as long with few rows in a turn: answers are fetched when half have ended.
        state, status = programs.decode(params, request, state, steps, active // 2)
    return programs.finish(request, state)


def _exchange(
    environments: Environments, view: TurnView, limits: np.ndarray, submitted: set[int]
) -> dict[int, Sequence[int] | FinishReason]:
    """Submit the turns that have ended, and wait for the answers that are due.

    Args:
      environments: Answers.
      view: The slots.
      limits: int32[B], limits of new tokens.
      submitted: Rows that wait for an answer since an earlier chunk; updated.

    Returns:
      Answers by slot. They are due for turns that were submitted before, or for all if no row is
      in a turn.
    """
    parked = np.flatnonzero(view.alive & view.parked)
    # In the order of the rows, whatever their slots.
    parked = [int(slot) for slot in parked[np.argsort(view.row[parked])]]
    before = set(submitted)
    for slot in parked:
        row, t = int(view.row[slot]), int(view.t[slot])
        if row not in before:
            turn = view.ids[slot, view.start[slot] : t].tolist()
            reason = FinishReason(int(view.reason[slot]))
            environments.submit(row, turn, reason, int(limits[row]) - t)
            submitted.add(row)
    if (view.alive & ~view.parked).any():
        parked = [slot for slot in parked if int(view.row[slot]) in before]
    replies = {}
    for slot in parked:
        row, room = int(view.row[slot]), int(limits[view.row[slot]] - view.t[slot])
        reply = replies[slot] = environments.reply(row)
        submitted.discard(row)
        if not isinstance(reply, FinishReason) and len(reply) >= room:
            raise ValueError(
                f"reply of row {row}: must have fewer tokens than there is room for ({room}), "
                f"got {len(reply)}"
            )
    return replies


def _stop_turns(
    turns: TurnPrograms, state: State, view: TurnView, stop: StopRule, new: int
) -> tuple[State, TurnView]:
    """End turns that contain a stop string."""
    lengths = np.full(len(view.row), -1, np.int32)
    for slot in np.flatnonzero(view.alive & (view.reason != FinishReason.STOP)):
        end, start = int(view.t[slot]), int(view.start[slot])
        before = max(start, end - new - stop.overlap)
        found = stop(view.ids[slot, before:end].tolist()) if end > before else None
        if found is not None:
            lengths[slot] = before + found
    if (lengths < 0).all():
        return state, view
    state = turns.park(state, lengths)
    return state, jax.device_get(turns.view(state))


def _observe(
    turns: TurnPrograms,
    params: Params,
    state: State,
    view: TurnView,
    observations: dict[int, Sequence[int]],
) -> State:
    """Append observations to the rows in some slots, and begin their next turns.

    The last token of an observation is left to the next decode step, which samples from it. The
    last token of a turn is not in the cache yet, and comes first.
    """
    if not observations:
        return state
    rows = len(view.row)
    tokens = {
        slot: [int(view.ids[slot, view.t[slot] - 1]), *ids[:-1]]
        for slot, ids in observations.items()
        if len(ids)
    }
    done = 0
    while pending := [slot for slot, ids in tokens.items() if len(ids) > done]:
        wanted = max(len(tokens[slot]) for slot in pending) - done
        chunk = next((size for size in _CHUNKS if size >= wanted), _CHUNKS[-1])
        at_once = max(1, _MAX_TOKENS // chunk)
        for first in range(0, len(pending), at_once):
            part = pending[first : first + at_once]
            size = min(size for size in _part_sizes(rows) if size >= len(part))
            slots, t, count = np.full(size, rows, np.int32), *np.zeros((2, size), np.int32)
            ids = np.zeros((size, chunk), np.int32)
            for i, slot in enumerate(part):
                piece = tokens[slot][done : done + chunk]
                slots[i], t[i], count[i] = slot, view.t[slot] - 1 + done, len(piece)
                ids[i, : len(piece)] = piece
            state = turns.extend(params, state, slots, t, ids, count)
        done += chunk
    width = max(map(len, observations.values()))
    width = max(_CHUNKS[0], 1 << (width - 1).bit_length())  # few widths are compiled
    resumed, count = np.zeros(rows, bool), np.zeros(rows, np.int32)
    ids = np.zeros((rows, width), np.int32)
    for slot, observation in observations.items():
        resumed[slot], count[slot] = True, len(observation)
        ids[slot, : len(observation)] = observation
    return turns.resume(state, resumed, ids, count)


def _part_sizes(rows: int) -> list[int]:
    """Return the numbers of rows that a chunk of observations is compiled for."""
    sizes = [rows]
    while sizes[-1] > _MIN_ROWS:
        sizes.append(max(-(-sizes[-1] // _SHRINK), _MIN_ROWS))
    return sizes
