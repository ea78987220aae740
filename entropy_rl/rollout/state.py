"""The state of a rollout in progress, and how its rows move between slots.

A slot is a place on the device in which one row is decoded. A row keeps its number b in 0 .. B-1
wherever it goes, and with it its random numbers: no result depends on the slot.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from entropy_rl.types import DecodeCache, FinishReason, Policy, Rollout


class Sampling(NamedTuple):
    """What is fixed when a sampler is made.

    Prompts lie in so many equal `shards` on the devices, if they divide: no result depends on it.
    """

    group_size: int
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float
    top_p: float
    shards: int = 1
    greedy: bool = False  # the last row of each group takes the most likely tokens


@struct.dataclass
class Request:
    """What one call asks for; constant while it is decoded."""

    prompt_ids: jax.Array  # int32[P, S]
    prompt_mask: jax.Array  # bool[P, S]
    keys: jax.Array  # key[B], of the rows
    limits: jax.Array  # int32[B], new tokens at most


@struct.dataclass
class Columns:
    """What was sampled for some rows. Columns from `length` on hold nothing that counts."""

    ids: jax.Array  # int32[rows, N]
    log_probs: jax.Array  # f32[rows, N]
    entropy: jax.Array  # f32[rows, N]
    length: jax.Array  # int32[rows]
    reason: jax.Array  # int32[rows], a FinishReason


@struct.dataclass
class Slots:
    """R rows that are decoded side by side."""

    row: jax.Array  # int32[R], the number of the row; B where there is none
    t: jax.Array  # the column that is sampled next: int32[] if it is the same for all, or int32[R]
    ids: jax.Array  # int32[R], the last token
    alive: jax.Array  # bool[R]
    columns: Columns
    cache: DecodeCache


@struct.dataclass
class Queue:
    """Rows that wait for a slot, in order, and what they will need."""

    next: jax.Array  # int32[], the first row that waits
    hidden: jax.Array  # [P, D], of each prompt's last token
    prompts: Any  # leaves [P, ...] of the prompts' cache


@struct.dataclass
class State:
    """A rollout in progress."""

    slots: Slots
    done: Columns  # of all B rows; those in a slot are written when they leave it
    queue: Queue | None  # None: every row had a slot from the start


class View(NamedTuple):
    """What the host needs to know to decide what comes next."""

    alive: jax.Array  # int32[], rows that are being decoded
    t: jax.Array  # int32[], the largest column that is sampled next
    waiting: jax.Array  # int32[], rows without a slot yet


def empty_columns(rows: int, columns: int) -> Columns:
    """Columns without a token."""
    shape = (rows, columns)
    return Columns(
        ids=jnp.zeros(shape, jnp.int32),
        log_probs=jnp.zeros(shape),
        entropy=jnp.zeros(shape),
        length=jnp.zeros(rows, jnp.int32),
        reason=jnp.zeros(rows, jnp.int32),
    )


def take_rows(tree: Any, numbers: jax.Array) -> Any:
    """Some rows of every array of a tree; what is one number for all rows stays."""
    return jax.tree.map(lambda x: x if x.ndim == 0 else jnp.take(x, numbers, axis=0), tree)


def view(state: State) -> View:
    """Looks at a state."""
    slots = state.slots
    waiting = jnp.int32(0) if state.queue is None else len(state.done.length) - state.queue.next
    return View(
        slots.alive.sum(), jnp.max(jnp.where(slots.alive, slots.t, 0)), jnp.maximum(waiting, 0)
    )


def flush(state: State) -> Columns:
    """What is known of all rows, those in slots included."""
    return jax.tree.map(
        lambda whole, part: whole.at[state.slots.row].set(part, mode="drop"),
        state.done,
        state.slots.columns,
    )


def so_far(state: State) -> Columns:
    """What is known of all rows while they are being decoded."""
    slots = state.slots
    # Until its first token is sampled, a row has the columns of the one that had its slot before.
    length = jnp.where(slots.t > 0, slots.columns.length, 0)
    return flush(state.replace(slots=slots.replace(columns=slots.columns.replace(length=length))))


def rearrange(policy: Policy, state: State, rows: int, columns: int) -> State:
    """Moves the rows that are still being decoded into fewer slots, or makes room for more columns.

    With fewer slots each gets its own copy of its prompt: the rows of a group no longer stand
      together.

    Args:
      policy: The model.
      state: At most `rows` of its slots are alive.
      rows: Slots.
      columns: Room for new tokens in the cache, not less than there is.
    """
    slots, done = state.slots, state.done
    cache = slots.cache
    if rows < len(slots.row):
        done = flush(state)
        order = jnp.argsort(~slots.alive, stable=True)[:rows]
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


def to_rollout(sampling: Sampling, request: Request, state: State) -> Rollout:
    """The finished rows in their order."""
    done = flush(state)
    mask = jnp.arange(sampling.max_new_tokens)[None] < done.length[:, None]
    return Rollout(
        prompt_ids=request.prompt_ids,
        prompt_mask=request.prompt_mask,
        completion_ids=jnp.where(mask, done.ids, sampling.pad_id),
        completion_mask=mask,
        log_probs=jnp.where(mask, done.log_probs, 0),
        entropy=jnp.where(mask, done.entropy, 0),
        finish_reason=done.reason,
    )


def cut(state: State, lengths: jax.Array) -> State:
    """Ends the rows in some slots at a stop string.

    Args:
      state: The state.
      lengths: int32[R], tokens of the row up to and with the stop string; -1 where there is none.
    """
    slots = state.slots
    found = lengths >= 0
    columns = slots.columns.replace(
        length=jnp.where(found, lengths, slots.columns.length),
        reason=jnp.where(found, FinishReason.STOP, slots.columns.reason).astype(jnp.int32),
    )
    return state.replace(slots=slots.replace(columns=columns, alive=slots.alive & ~found))


def trim(sampling: Sampling, rollout: Rollout, lengths: jax.Array) -> Rollout:
    """Ends finished rows at a stop string.

    Args:
      sampling: The settings.
      rollout: Finished rows.
      lengths: int32[B], tokens up to and with the stop string; -1 where there is none.
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
