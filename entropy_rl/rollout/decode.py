"""Decoding: the start of a rollout, one step of it, and the loop over steps that every decoding
runs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.rollout.sampling import sample
from entropy_rl.rollout.state import (
    Columns,
    Queue,
    Request,
    Sampling,
    Slots,
    State,
    empty_columns,
    take_rows,
)
from entropy_rl.types import DecodeCache, FinishReason, Params, Policy

# Prompts are computed in parts of about so many tokens: activations of all of them need not fit.
_PREFILL_TOKENS = 2**16


def sample_keys(key: jax.Array, prompt_index: jax.Array, sample_index: jax.Array) -> jax.Array:
    """One key per row from what the row is, not from where it stands.

    Args:
      key: The key of the step: fold_in(key(seed), step).
      prompt_index: int32[P], which problem each prompt is.
      sample_index: int32[G], which of its samples.

    Returns:
      key[P*G]. The key of the t-th token is fold_in(row key, t).
    """
    fold = jax.random.fold_in
    keys = jax.vmap(lambda p: jax.vmap(lambda s: fold(fold(key, p), s))(sample_index))(prompt_index)
    return keys.reshape(-1)


def start(
    policy: Policy, params: Params, sampling: Sampling, request: Request, slots: int, columns: int
) -> State:
    """Computes every prompt once and samples the first token of the rows that have a slot.

    Args:
      policy: The model.
      params: Decoding parameters.
      sampling: The settings.
      request: P prompts, B = P*G rows.
      slots: Rows that are decoded side by side; with fewer than B the others wait.
      columns: Room for new tokens in the cache.
    """
    rows, group = len(request.keys), sampling.group_size
    with jax.named_scope("prefill"):
        hidden, prompts = _prefill(policy, params, request)
    row = jnp.arange(slots, dtype=jnp.int32)
    shared = slots == rows  # the rows of a group stand together and read one copy of the prompt
    own = (lambda tree: tree) if shared else (lambda tree: take_rows(tree, row // group))
    fresh = Slots(
        row=row,
        t=jnp.int32(0) if shared else jnp.zeros(slots, jnp.int32),
        ids=jnp.zeros(slots, jnp.int32),
        alive=jnp.ones(slots, bool),
        columns=empty_columns(slots, sampling.max_new_tokens),
        cache=DecodeCache(
            own(prompts), own(request.prompt_mask), policy.empty_rows(slots, columns)
        ),
    )
    queue = None if shared else Queue(next=jnp.int32(slots), hidden=hidden, prompts=prompts)
    state = State(
        slots=_draw(
            policy, params, sampling, request, fresh, jnp.take(hidden, row // group, axis=0)
        ),
        done=empty_columns(rows, sampling.max_new_tokens),
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
    """Decodes token after token.

    Args:
      policy: The model.
      params: Decoding parameters.
      sampling: The settings.
      request: What is asked for.
      state: Where things stand; the cache has room for `steps` more columns in every slot.
      steps: Tokens per slot at most.
      until_alive: It ends when no more rows than this are alive.

    Returns:
      The state after them.
    """

    def go_on(carry: tuple[jax.Array, State]) -> jax.Array:
        i, state = carry
        return (i < steps) & (state.slots.alive.sum() > until_alive)

    def step(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        i, state = carry
        slots = state.slots
        # A row that has just come has no token yet; its column 0 is written again in the next step.
        t = jnp.maximum(slots.t - 1, 0)
        hidden, cache = policy.decode(params, slots.ids, t, slots.cache)
        if state.queue is not None:
            first = jnp.take(
                state.queue.hidden, slots.row // sampling.group_size, axis=0, mode="clip"
            )
            hidden = jnp.where((slots.t == 0)[:, None], first, hidden)
        slots = _draw(policy, params, sampling, request, slots.replace(cache=cache), hidden)
        state = state.replace(slots=slots)
        return i + 1, state if state.queue is None else refill(sampling, request, state)

    with jax.named_scope("decode"):
        return jax.lax.while_loop(go_on, step, (jnp.int32(0), state))[1]


def _prefill(policy: Policy, params: Params, request: Request):
    ids, mask = request.prompt_ids, request.prompt_mask
    count, length = ids.shape
    part = max(1, _PREFILL_TOKENS // length)
    if count <= part:
        return policy.prefill(params, ids, mask)

    # Every part takes prompts from all over, and so from all devices that they are split over.
    parts = -(-count // part)
    part = -(-count // parts)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, part * parts - count), (0, 0)), constant_values=1)  # each has a token
        return x.reshape((part, parts) + x.shape[1:]).swapaxes(0, 1)

    found = jax.lax.map(lambda prompts: policy.prefill(params, *prompts), (split(ids), split(mask)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape((-1,) + x.shape[2:])[:count], found)


def _draw(
    policy: Policy,
    params: Params,
    sampling: Sampling,
    request: Request,
    slots: Slots,
    hidden: jax.Array,
) -> Slots:
    """Samples column t of every slot from the hidden states before it."""
    logits = jax.lax.dot_general(
        hidden, policy.head(params), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    t = jnp.broadcast_to(slots.t, slots.row.shape)
    keys = jnp.take(request.keys, slots.row, mode="clip")
    uniforms = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t)))(keys, t)
    uniforms += 2.0**-24  # the middle of its cell: an exact 0 would draw a token of any small mass
    greedy = (slots.row + 1) % sampling.group_size == 0 if sampling.greedy else None
    ids, log_probs, entropy = sample(
        logits, uniforms, temperature=sampling.temperature, top_p=sampling.top_p, greedy=greedy
    )
    at_eos = jnp.isin(ids, jnp.array(sampling.eos_ids, jnp.int32))
    at_limit = t + 1 >= jnp.take(request.limits, slots.row, mode="clip")
    old, alive = slots.columns, slots.alive
    reason = jnp.where(at_eos, FinishReason.EOS, FinishReason.LENGTH).astype(jnp.int32)
    columns = Columns(
        ids=_write(old.ids, ids, slots.t),
        log_probs=_write(old.log_probs, log_probs, slots.t),
        entropy=_write(old.entropy, entropy, slots.t),
        length=jnp.where(alive, t + 1, old.length),
        reason=jnp.where(alive, reason, old.reason),
    )
    # With a clock of its own, a slot stands still behind the end of its row.
    t = slots.t + 1 if slots.t.ndim == 0 else jnp.where(alive, slots.t + 1, slots.t)
    return slots.replace(ids=ids, t=t, alive=alive & ~(at_eos | at_limit), columns=columns)


def _write(columns: jax.Array, values: jax.Array, t: jax.Array) -> jax.Array:
    """Values as column t, which is one number for all rows or one for each."""
    if t.ndim == 0:
        return jax.lax.dynamic_update_slice(columns, values[:, None], (0, t))
    return columns.at[jnp.arange(len(values)), t].set(values, unique_indices=True, mode="drop")


def refill(sampling: Sampling, request: Request, state: State) -> State:
    """Gives the slots of rows that have ended to rows that wait."""
    rows, group = len(request.keys), sampling.group_size
    free = ~state.slots.alive
    number = state.queue.next + jnp.cumsum(free, dtype=jnp.int32) - 1
    free &= number < rows
    order = jnp.argsort(~free, stable=True)

    def take_next(i: jax.Array, state: State) -> State:
        slots, queue = state.slots, state.queue
        slot, row = order[i], queue.next
        done = jax.tree.map(
            lambda whole, part: whole.at[slots.row[slot]].set(part[slot]), state.done, slots.columns
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
        )
        return State(slots, done, queue.replace(next=row + 1))

    return jax.lax.fori_loop(0, free.sum(), take_next, state)


def _entry(x: jax.Array, number: jax.Array, shards: int) -> jax.Array:
    """An entry of an array that lies in equal shards on the devices: it travels, and not the whole
    array.
    """
    if shards == 1 or len(x) % shards:
        return x[number]
    of_share = x.reshape((shards, -1) + x.shape[1:])
    share, place = jnp.divmod(number, of_share.shape[1])
    here = (jnp.arange(shards) == share).reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(here, of_share[:, place], 0).sum(0, dtype=x.dtype)
