"""Decoding as this library does it: its compiled loop, from a state that has come to the wanted
context.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import roofline_model as model
from roofline_machine import say, timed
from roofline_setup import Setup, measurement

from entropy_rl.planning import counting
from entropy_rl.planning.counting import Cost
from entropy_rl.rollout.programs import SamplerPrograms
from entropy_rl.rollout.state import Sampling, State, Status


def window(setup: Setup, steps: int, room: int | None) -> tuple[int, int]:
    """The column at which a measurement begins, so that its mean is the context, and the room of
    the cache.

    Raises:
      ValueError: If there is no such column, or too little room.
    """
    first = setup.limit - steps // 2
    if first < 1:
        raise ValueError(
            f"--steps: {steps} is not allowed; allowed: less than twice the {setup.limit} "
            "tokens of the context after the prompt"
        )
    needed = first + steps - 1  # the last step samples a column from those before it
    if room is not None and room < needed:
        raise ValueError(
            f"--room: {room} is not allowed; allowed: >= {needed}, the columns that are filled"
        )
    return first, needed if room is None else room


def check_memory(setup: Setup, rows: int, steps: int, room: int | None) -> None:
    """Checks that the weights and the cache fit.

    Raises:
      ValueError: If they do not.
    """
    _, room = window(setup, steps, room)
    shape = (rows, room, rows // setup.group, setup.prompt, setup.itemsize)
    allowed = "a smaller --batch, --context or --room, or fewer --layers"
    model.check_fits("decode", model.decode_bytes(setup.config, *shape), setup.memory, allowed)


def decode(setup: Setup, rows: int, steps: int, room: int | None) -> list[dict]:
    """Steps of the sampler's loop, all rows alive, around a context.

    Args:
      setup: The setup.
      rows: B.
      steps: Steps per measurement.
      room: Columns of the cache; None for just enough.
    """
    c = setup.config
    first, room = window(setup, steps, room)
    prompts = setup.prompts(rows)
    count = len(prompts[0])
    say(f"decode, B = {rows}")
    # No row ends: no token is a last one, and the limit is out of reach.
    limit = first + steps + 1
    sampling = Sampling(setup.group, limit, (c.vocab_size,), 0, 1.0, 1.0)
    programs = SamplerPrograms(setup.policy, sampling)
    shapes = jax.eval_shape(
        lambda key: setup.policy.to_decode(setup.policy.init(key)), jax.random.key(0)
    )
    params = model.random_params(shapes, setup.dtype, seed=1)
    limits = np.full(count, limit, np.int32)
    request, state, _ = programs.begin(rows, room, params, (*prompts, limits), jax.random.key(2), 0)
    held = [_fill_cache(state)]

    def run() -> Status:
        state = held.pop()
        state = state.replace(slots=state.slots.replace(t=jnp.int32(first)))
        state, status = programs.decode(params, request, state, steps, 0)
        held.append(state)
        return status

    seconds, status = timed(run, setup.runs)
    alive, t = int(status.alive), int(status.t)
    if (alive, t) != (rows, first + steps):
        raise ValueError(
            f"decode: {alive} of {rows} rows came to column {t} instead of {first + steps}"
        )
    columns = first + np.arange(steps)
    cost = counting.decode_step(c, rows, columns, count, setup.prompt, setup.itemsize).total()
    cost = Cost(cost.flops / steps, cost.bytes / steps)
    facts = dict(
        tokens_are="of completions", rows=rows, context=setup.context, room=room, steps=steps
    )
    return [
        measurement(
            setup, f"decode step, B={rows}", [s / steps for s in seconds], rows, cost, **facts
        )
    ]


@functools.partial(jax.jit, donate_argnums=0)
def _fill_cache(state: State) -> State:
    """Keys and values that differ, in place of zeros: power, and with it the clock, depends on
    bits.
    """

    def leaf(x: jax.Array) -> jax.Array:
        counts = [
            0.37 * (i + 1) * jax.lax.broadcasted_iota(jnp.float32, x.shape, i)
            for i in range(x.ndim)
        ]
        return jnp.sin(sum(counts)).astype(x.dtype)

    cache = state.slots.cache
    cache = cache.replace(rows=jax.tree.map(leaf, cache.rows))
    return state.replace(slots=state.slots.replace(cache=cache))
