"""Prefill, the loop over decode steps, and the refill of free slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.lm_head.vocabulary import split_head
from entropy_rl.precision import product_precision
from entropy_rl.rollout.sampling import sample
from entropy_rl.rollout.state import (
    Queue,
    Request,
    Sampling,
    Slots,
    State,
    Turns,
    empty_completions,
    slots_needed,
    take_rows,
)
from entropy_rl.types import DecodeCache, FinishReason, Params, Policy

# Tokens per part of the prefill, so that the activations of all prompts need not fit.
_PREFILL_TOKENS = 2**16


def sample_keys(key: jax.Array, prompt_index: jax.Array, sample_index: jax.Array) -> jax.Array:
    """Derive one key per row from its problem and sample number, whatever its position.

    Args:
      key: Key of the step: fold_in(key(seed), step); key[K] for K equal parts of the prompts, each
        with its own.
      prompt_index: int32[P], the problem of each prompt.
      sample_index: int32[G], the sample numbers within a group.

    Returns:
      key[P*G]. The key of the t-th token is fold_in(row key, t).
    """
    if key.ndim == 1:
        parts = prompt_index.reshape(len(key), -1)
        return jax.vmap(sample_keys, (0, 0, None))(key, parts, sample_index).reshape(-1)
    fold = jax.random.fold_in
    keys = jax.vmap(lambda p: jax.vmap(lambda s: fold(fold(key, p), s))(sample_index))(prompt_index)
    return keys.reshape(-1)


def start(
    policy: Policy, params: Params, sampling: Sampling, request: Request, slots: int, columns: int
) -> State:
    """Prefill every prompt once and sample the first token of the rows in slots.

    Args:
      policy: The model.
      params: Decoding parameters.
      sampling: The settings.
      request: P prompts, B = P*G rows.
      slots: Rows decoded side by side; with fewer than B, the other rows wait in the queue.
      columns: New tokens per row that the cache has room for.
    """
    rows, group = len(request.keys), sampling.group_size
    with jax.named_scope("prefill"):
        hidden, prompts = _prefill(policy, params, request, sampling.adapters)
    row = jnp.arange(slots, dtype=jnp.int32)
    shared = slots == rows  # the rows of a group are contiguous and share the prompt's cache
    in_turns = sampling.max_turn_tokens is not None
    own = (lambda tree: tree) if shared else (lambda tree: take_rows(tree, row // group))
    fresh = Slots(
        row=row,
        t=jnp.int32(0) if shared and not in_turns else jnp.zeros(slots, jnp.int32),
        ids=jnp.zeros(slots, jnp.int32),
        alive=jnp.ones(slots, bool),
        completions=empty_completions(slots, sampling),
        cache=DecodeCache(
            own(prompts), own(request.prompt_mask), policy.empty_rows(slots, columns)
        ),
        turns=Turns(jnp.zeros(slots, bool), jnp.zeros(slots, jnp.int32)) if in_turns else None,
    )
    queue = None if shared else Queue(next=jnp.int32(slots), hidden=hidden, prompts=prompts)
    state = State(
        slots=_sample_column(
            policy, params, sampling, request, fresh, jnp.take(hidden, row // group, axis=0)
        ),
        done=empty_completions(rows, sampling),
        queue=queue,
    )
    return state if shared else refill(sampling, request, state)


def advance(
    policy: Policy,
    params: Params,
    sampling: Sampling,
    request: Request,
    state: State,
    steps: jax.Array | int,
    until_alive: jax.Array | int,
) -> State:
    """Run decode steps, one token per slot each.

    Args:
      policy: The model.
      params: Decoding parameters.
      sampling: The settings.
      request: Inputs of the rollout.
      state: The state; its cache has room for `steps` more columns in every slot.
      steps: Maximum number of steps.
      until_alive: Stop when at most this many rows are unfinished, or, in episodes of several
        turns, in a turn.

    Returns:
      The state after the last step.
    """

    def condition(carry: tuple[jax.Array, State]) -> jax.Array:
        i, state = carry
        return (i < steps) & (slots_needed(state.slots.active, sampling.adapters) > until_alive)

    def step(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        i, state = carry
        slots = state.slots
        # A row from the queue has no token yet; its column 0 is written again in the next step.
        t = jnp.maximum(slots.t - 1, 0)
        hidden, cache = policy.decode(params, slots.ids, t, slots.cache)
        if state.queue is not None:
            first = jnp.take(
                state.queue.hidden, slots.row // sampling.group_size, axis=0, mode="clip"
            )
            hidden = jnp.where((slots.t == 0)[:, None], first, hidden)
        slots = _sample_column(
            policy, params, sampling, request, slots.replace(cache=cache), hidden
        )
        state = state.replace(slots=slots)
        return i + 1, state if state.queue is None else refill(sampling, request, state)

    with jax.named_scope("decode"):
        return jax.lax.while_loop(condition, step, (jnp.int32(0), state))[1]


def _prefill(policy: Policy, params: Params, request: Request, adapters: int):
    ids, mask = request.prompt_ids, request.prompt_mask
    count, length = ids.shape
    part = max(1, _PREFILL_TOKENS // length)
    if count <= part:
        return policy.prefill(params, ids, mask)

    # Every part is a strided slice, so that all devices that hold prompts work on it.
    parts = -(-count // part)
    while adapters > 1 and (count // adapters) % parts:  # as many prompts of each in every part
        parts += 1
    part = -(-count // parts)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, part * parts - count), (0, 0)), constant_values=1)  # each has a token
        return x.reshape((part, parts) + x.shape[1:]).swapaxes(0, 1)

    found = jax.lax.map(lambda prompts: policy.prefill(params, *prompts), (split(ids), split(mask)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape((-1,) + x.shape[2:])[:count], found)


def _sample_column(
    policy: Policy,
    params: Params,
    sampling: Sampling,
    request: Request,
    slots: Slots,
    hidden: jax.Array,
) -> Slots:
    """Sample column t of every slot from the hidden states of the tokens before it."""
    head, unused = split_head(policy.head(params))
    logits = jax.lax.dot_general(
        hidden,
        head,
        (((1,), (1,)), ((), ())),
        precision=product_precision(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    t = jnp.broadcast_to(slots.t, slots.row.shape)
    keys = jnp.take(request.keys, slots.row, mode="clip")
    uniforms = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)))(keys, t)
    uniforms += 2.0**-24  # center of its cell: an exact 0 would select a token of any small mass
    greedy = (slots.row + 1) % sampling.group_size == 0 if sampling.greedy else None
    ids, log_probs, entropy = sample(
        logits,
        uniforms,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        greedy=greedy,
        unused=unused,
    )
    at_eos = jnp.isin(ids, jnp.array(sampling.eos_ids, jnp.int32))
    at_limit = t + 1 >= jnp.take(request.limits, slots.row, mode="clip")
    old, active = slots.completions, slots.active
    reason = jnp.where(at_eos, FinishReason.EOS, FinishReason.LENGTH).astype(jnp.int32)
    completions = old.replace(
        ids=_write(old.ids, ids, slots.t),
        log_probs=_write(old.log_probs, log_probs, slots.t),
        entropy=_write(old.entropy, entropy, slots.t),
        length=jnp.where(active, t + 1, old.length),
        reason=jnp.where(active, reason, old.reason),
    )
    # With a t per slot, that of a finished row stays.
    next_t = slots.t + 1 if slots.t.ndim == 0 else jnp.where(active, slots.t + 1, slots.t)
    if slots.turns is None:
        alive = active & ~(at_eos | at_limit)
        return slots.replace(ids=ids, t=next_t, alive=alive, completions=completions)
    turns = slots.turns
    at_limit |= t + 1 >= turns.start + sampling.max_turn_tokens
    return slots.replace(
        # The last token of a parked row is appended to its cache again and again.
        ids=jnp.where(active, ids, slots.ids),
        t=next_t,
        turns=turns.replace(parked=turns.parked | (active & (at_eos | at_limit))),
        completions=completions.replace(
            sampled=_write(old.sampled, jnp.ones_like(active), slots.t)
        ),
    )


def _write(columns: jax.Array, values: jax.Array, t: jax.Array) -> jax.Array:
    """Write column t, a scalar or one number per row."""
    if t.ndim == 0:
        return jax.lax.dynamic_update_slice(columns, values[:, None], (0, t))
    return columns.at[jnp.arange(len(values)), t].set(values, unique_indices=True, mode="drop")


def refill(sampling: Sampling, request: Request, state: State) -> State:
    """Assign the slots of finished rows to rows of the queue."""
    rows, group = len(request.keys), sampling.group_size
    free = ~state.slots.alive
    number = state.queue.next + jnp.cumsum(free, dtype=jnp.int32) - 1
    free &= number < rows
    order = jnp.argsort(~free, stable=True)

    def take_next(i: jax.Array, state: State) -> State:
        slots, queue = state.slots, state.queue
        slot, row = order[i], queue.next
        done = jax.tree.map(
            lambda whole, part: whole.at[slots.row[slot]].set(part[slot]),
            state.done,
            slots.completions,
        )
        cache, prompt = slots.cache, row // group
        put = lambda old, new: old.at[slot].set(_entry(new, prompt, sampling.shards))  # noqa: E731
        cache = cache.replace(
            prompts=jax.tree.map(put, cache.prompts, queue.prompts),
            prompt_mask=put(cache.prompt_mask, request.prompt_mask),
        )
        slots = slots.replace(
            row=slots.row.at[slot].set(row),
            t=slots.t.at[slot].set(0),
            alive=slots.alive.at[slot].set(True),
            cache=cache,
            turns=None if slots.turns is None else _first_turn(slots.turns, slot),
        )
        return State(slots, done, queue.replace(next=row + 1))

    return jax.lax.fori_loop(0, free.sum(), take_next, state)


def _first_turn(turns: Turns, slot: jax.Array) -> Turns:
    """Begin the first turn of the row in a slot."""
    return Turns(turns.parked.at[slot].set(False), turns.start.at[slot].set(0))


def _entry(x: jax.Array, number: jax.Array, shards: int) -> jax.Array:
    """Read one entry of a sharded array; only the entry is communicated, not the whole array."""
    if shards == 1 or len(x) % shards:
        return x[number]
    by_shard = x.reshape((shards, -1) + x.shape[1:])
    shard, place = jnp.divmod(number, by_shard.shape[1])
    here = (jnp.arange(shards) == shard).reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(here, by_shard[:, place], 0).sum(0, dtype=x.dtype)
