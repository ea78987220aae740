"""State of a rollout in progress, and the functions that move its rows between slots.

A slot holds one row while it is decoded. Random numbers belong to the row's number b in 0 .. B-1,
so no result depends on the slot.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from entropy_rl.types import DecodeCache, FinishReason, Policy, Rollout


class Sampling(NamedTuple):
    """Static settings of a sampler.

    Prompts are sharded over the devices in `shards` equal parts, if divisible; no result depends
    on it.
    """

    group_size: int
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float
    top_p: float
    shards: int = 1
    greedy: bool = False  # the last row of each group takes argmax tokens
    max_turn_tokens: int | None = None  # of an episode; None for completions of a single turn
    adapters: int = 1  # stacked ones; each decodes an equal, contiguous part of the prompts


@struct.dataclass
class Request:
    """Inputs of one call, constant while it is decoded."""

    prompt_ids: jax.Array  # int32[P, S]
    prompt_mask: jax.Array  # bool[P, S]
    keys: jax.Array  # key[B], one per row
    limits: jax.Array  # int32[B], maximum new tokens


@struct.dataclass
class Completions:
    """Sampled tokens of some rows. Columns >= `length` are undefined."""

    ids: jax.Array  # int32[rows, N]
    log_probs: jax.Array  # f32[rows, N]
    entropy: jax.Array  # f32[rows, N]
    length: jax.Array  # int32[rows]
    reason: jax.Array  # int32[rows], a FinishReason
    # bool[rows, N], False at tokens of observations; None if all tokens are sampled
    sampled: jax.Array | None = None


@struct.dataclass
class Turns:
    """The turns of the episodes in R slots."""

    parked: jax.Array  # bool[R], the turn has ended, and the row waits for its environment
    start: jax.Array  # int32[R], first column of the turn


@struct.dataclass
class Slots:
    """R rows that are decoded side by side."""

    row: jax.Array  # int32[R], row number; B for an empty slot
    t: jax.Array  # next column to sample: int32[] if the same for all slots, otherwise int32[R]
    ids: jax.Array  # int32[R], last token
    alive: jax.Array  # bool[R], the row is unfinished
    completions: Completions
    cache: DecodeCache
    turns: Turns | None = None  # None for completions of a single turn

    @property
    def active(self) -> jax.Array:
        """bool[R], the row gets a token in the next step."""
        return self.alive if self.turns is None else self.alive & ~self.turns.parked


@struct.dataclass
class Queue:
    """Rows waiting for a slot, in order, and the prefilled prompts."""

    next: jax.Array  # int32[], first waiting row
    hidden: jax.Array  # [P, D], at each prompt's last token
    prompts: Any  # leaves [P, ...], the prompts' cache


@struct.dataclass
class State:
    """A rollout in progress."""

    slots: Slots
    done: Completions  # of all B rows; a row's are written when it leaves its slot
    queue: Queue | None  # None if every row had a slot from the start


class Status(NamedTuple):
    """Summary of a `State` for the host."""

    alive: jax.Array  # int32[], slots that hold the unfinished rows: see `slots_needed`
    t: jax.Array  # int32[], largest next column of them
    waiting: jax.Array  # int32[], rows in the queue


def empty_completions(rows: int, sampling: Sampling) -> Completions:
    """Allocate completions of length 0."""
    shape = (rows, sampling.max_new_tokens)
    return Completions(
        ids=jnp.zeros(shape, jnp.int32),
        log_probs=jnp.zeros(shape),
        entropy=jnp.zeros(shape),
        length=jnp.zeros(rows, jnp.int32),
        reason=jnp.zeros(rows, jnp.int32),
        sampled=None if sampling.max_turn_tokens is None else jnp.zeros(shape, bool),
    )


def take_rows(tree: Any, numbers: jax.Array) -> Any:
    """Gather rows of every array of a tree; scalars are left as they are."""
    return jax.tree.map(lambda x: x if x.ndim == 0 else jnp.take(x, numbers, axis=0), tree)


def slots_needed(alive: jax.Array, adapters: int) -> jax.Array:
    """Return int32[], the fewest slots that hold some rows: as many for each adapter.

    Args:
      alive: bool[R], the rows among those in slots.
      adapters: K; the rows of an adapter are contiguous.
    """
    return adapters * jnp.max(alive.reshape(adapters, -1).sum(1))


def status_of(state: State, adapters: int = 1) -> Status:
    """Summarize a state of the rows of K adapters."""
    slots = state.slots
    waiting = jnp.int32(0) if state.queue is None else len(state.done.length) - state.queue.next
    return Status(
        slots_needed(slots.alive, adapters),
        jnp.max(jnp.where(slots.alive, slots.t, 0)),
        jnp.maximum(waiting, 0),
    )


def collect_completions(state: State) -> Completions:
    """Return the completions of all rows, including those in slots."""
    return jax.tree.map(
        lambda whole, part: whole.at[state.slots.row].set(part, mode="drop"),
        state.done,
        state.slots.completions,
    )


def partial_completions(state: State) -> Completions:
    """Return the tokens sampled so far of all rows, while they are being decoded."""
    slots = state.slots
    # Until its first token is sampled, a slot still holds the completion of its previous row.
    length = jnp.where(slots.t > 0, slots.completions.length, 0)
    completions = slots.completions.replace(length=length)
    return collect_completions(state.replace(slots=slots.replace(completions=completions)))


def rearrange(policy: Policy, state: State, rows: int, columns: int, adapters: int = 1) -> State:
    """Compact unfinished rows into fewer slots, or grow the cache.

    With fewer slots, every slot gets its own copy of its prompt's cache, as the rows of a group
    are no longer contiguous.

    Args:
      policy: The model.
      state: The state, with at most `rows` unfinished rows in slots.
      rows: Slots after the call.
      columns: New tokens per row that the cache has room for, at least as many as before.
      adapters: K; `rows` is divisible by it.
    """
    slots, done = state.slots, state.done
    cache = slots.cache
    if rows < len(slots.row):
        done = collect_completions(state)
        order = _first_unfinished(slots.alive, rows, adapters)
        shared = len(slots.row) // len(cache.prompt_mask)

        cache = DecodeCache(
            *take_rows((cache.prompts, cache.prompt_mask), order // shared),
            take_rows(cache.rows, order),
        )
        slots = take_rows(slots.replace(cache=None), order)
    wanted = jax.eval_shape(lambda: policy.empty_rows(rows, columns))
    cache = cache.replace(
        rows=jax.tree.map(
            lambda x, big: jnp.pad(
                x, [(0, m - n) for n, m in zip(x.shape, big.shape, strict=True)]
            ),
            cache.rows,
            wanted,
        )
    )
    return state.replace(slots=slots.replace(cache=cache), done=done)


def _first_unfinished(alive: jax.Array, rows: int, adapters: int) -> jax.Array:
    """Return int32[rows], slots in order: unfinished ones first, as many for each adapter."""
    of_adapter = alive.reshape(adapters, -1)
    order = jnp.argsort(~of_adapter, axis=1, stable=True)[:, : rows // adapters]
    first = of_adapter.shape[1] * jnp.arange(adapters)
    return (first[:, None] + order).reshape(-1)


def to_rollout(sampling: Sampling, request: Request, state: State) -> Rollout:
    """Return all rows in order, as a `Rollout`."""
    done = collect_completions(state)
    in_row = jnp.arange(sampling.max_new_tokens)[None] < done.length[:, None]
    mask = in_row if done.sampled is None else in_row & done.sampled
    return Rollout(
        prompt_ids=request.prompt_ids,
        prompt_mask=request.prompt_mask,
        completion_ids=jnp.where(in_row, done.ids, sampling.pad_id),
        completion_mask=mask,
        log_probs=jnp.where(mask, done.log_probs, 0),
        entropy=jnp.where(mask, done.entropy, 0),
        finish_reason=done.reason,
    )


def stop_rows(state: State, lengths: jax.Array) -> State:
    """End rows in slots at a stop string.

    Args:
      state: The state.
      lengths: int32[R], length up to and including the stop string; -1 without one.
    """
    slots, old = state.slots, state.slots.completions
    found = lengths >= 0
    completions = old.replace(
        length=jnp.where(found, lengths, old.length),
        reason=jnp.where(found, FinishReason.STOP, old.reason).astype(jnp.int32),
    )
    return state.replace(slots=slots.replace(completions=completions, alive=slots.alive & ~found))


def truncate(sampling: Sampling, rollout: Rollout, lengths: jax.Array) -> Rollout:
    """Truncate finished rows at a stop string.

    Args:
      sampling: The settings.
      rollout: Finished rows.
      lengths: int32[B], length up to and including the stop string; -1 without one.
    """
    found = lengths >= 0
    columns = jnp.arange(sampling.max_new_tokens)[None]
    mask = rollout.completion_mask & ((columns < lengths[:, None]) | ~found[:, None])
    return rollout.replace(
        completion_ids=jnp.where(mask, rollout.completion_ids, sampling.pad_id),
        completion_mask=mask,
        log_probs=jnp.where(mask, rollout.log_probs, 0),
        entropy=jnp.where(mask, rollout.entropy, 0),
        finish_reason=jnp.where(found, FinishReason.STOP, rollout.finish_reason).astype(jnp.int32),
    )
