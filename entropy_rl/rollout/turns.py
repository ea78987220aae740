"""Jitted programs between the turns of episodes: end rows, park them, append observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.rollout.decode import refill
from entropy_rl.rollout.state import (
    Request,
    Sampling,
    State,
    Status,
    Turns,
    status_of,
    take_rows,
)
from entropy_rl.types import DecodeCache, FinishReason, Params, Policy


class TurnView(NamedTuple):
    """What the host reads of R slots between two chunks."""

    row: jax.Array  # int32[R], row number; B for an empty slot
    alive: jax.Array  # bool[R], the episode is unfinished
    parked: jax.Array  # bool[R], the turn has ended
    t: jax.Array  # int32[R], columns of the row so far
    start: jax.Array  # int32[R], first column of its last turn
    ids: jax.Array  # int32[R, N]
    reason: jax.Array  # int32[R], why its last turn ended


class TurnPrograms:
    """Jitted functions between turns, compiled per shape on first use."""

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        constrain: Callable[[Any], Any] = lambda tree: tree,
    ):
        """
        Args:
          policy: The model; it has `extend`.
          sampling: The settings.
          constrain: Applies sharding constraints to rows and their caches.
        """

        def view(state: State) -> TurnView:
            slots, turns, completions = state.slots, state.slots.turns, state.slots.completions
            return TurnView(
                row=slots.row,
                alive=slots.alive,
                parked=turns.parked,
                t=slots.t,
                start=turns.start,
                ids=completions.ids,
                reason=completions.reason,
            )

        def park(state: State, lengths: jax.Array) -> State:
            """End turns at a stop string, at lengths int32[R]; -1 without one."""
            slots, old, found = state.slots, state.slots.completions, lengths >= 0
            last = jnp.take_along_axis(old.ids, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
            reason = jnp.where(found, FinishReason.STOP, old.reason).astype(jnp.int32)
            return state.replace(
                slots=slots.replace(
                    ids=jnp.where(found, last, slots.ids),
                    t=jnp.where(found, lengths, slots.t),
                    turns=slots.turns.replace(parked=slots.turns.parked | found),
                    completions=old.replace(
                        length=jnp.where(found, lengths, old.length), reason=reason
                    ),
                )
            )

        def end(request: Request, state: State, reasons: jax.Array) -> tuple[State, Status]:
            """End episodes, for reasons int32[R]; -1 for those that go on."""
            slots, old, ends = state.slots, state.slots.completions, reasons >= 0
            completions = old.replace(reason=jnp.where(ends, reasons, old.reason))
            slots = slots.replace(completions=completions, alive=slots.alive & ~ends)
            state = state.replace(slots=slots)
            if state.queue is not None:
                state = constrain(refill(sampling, request, state))
            return state, status_of(state)

        def extend(
            params: Params,
            state: State,
            slots: jax.Array,
            t: jax.Array,
            ids: jax.Array,
            count: jax.Array,
        ) -> State:
            """Append count int32[M] tokens ids int32[M, C] to the caches of slots int32[M], from
            column t int32[M] on. Padding has the number of a slot that does not exist.
            """
            cache, size = state.slots.cache, len(state.slots.row)
            number = jnp.minimum(slots, size - 1)
            entry = number // (size // len(cache.prompt_mask))
            part = DecodeCache(
                *take_rows((cache.prompts, cache.prompt_mask), entry),
                take_rows(cache.rows, number),
            )
            part = policy.extend(params, ids, t, count, part)
            put = lambda whole, new: whole.at[slots].set(new, mode="drop")  # noqa: E731
            cache = cache.replace(rows=jax.tree.map(put, cache.rows, part.rows))
            return constrain(state.replace(slots=state.slots.replace(cache=cache)))

        def resume(state: State, resumed: jax.Array, ids: jax.Array, count: jax.Array) -> State:
            """Begin the next turn of the rows in resumed bool[R], after count int32[R] tokens ids
            int32[R, W] of an observation.
            """
            slots, old, turns = state.slots, state.slots.completions, state.slots.turns
            number = jnp.arange(ids.shape[1])[None]
            inside = resumed[:, None] & (number < count[:, None])
            columns = jnp.where(inside, slots.t[:, None] + number, old.ids.shape[1])
            place = (jnp.arange(len(count))[:, None], columns)
            last = jnp.take_along_axis(ids, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
            t = jnp.where(resumed, slots.t + count, slots.t)
            return state.replace(
                slots=slots.replace(
                    ids=jnp.where(resumed & (count > 0), last, slots.ids),
                    t=t,
                    turns=Turns(turns.parked & ~resumed, jnp.where(resumed, t, turns.start)),
                    completions=old.replace(
                        ids=old.ids.at[place].set(ids, mode="drop"),
                        sampled=old.sampled.at[place].set(False, mode="drop"),
                    ),
                )
            )

        self.view = jax.jit(view)
        self.park = jax.jit(park, donate_argnums=0)
        self.end = jax.jit(end, donate_argnums=1)
        self.extend = jax.jit(extend, donate_argnums=1)
        self.resume = jax.jit(resume, donate_argnums=0)
