"""The compiled parts of a sampler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.rollout.batching import (
    DecodingPlan,
    cache_bytes,
    choose,
    device_memory,
    row_counts,
    rows_that_fit,
)
from entropy_rl.rollout.decode import advance, refill, sample_keys, start
from entropy_rl.rollout.state import (
    Request,
    Sampling,
    State,
    View,
    cut,
    rearrange,
    so_far,
    to_rollout,
    trim,
    view,
)
from entropy_rl.types import Params, Policy, Rollout


class Programs:
    """Jitted functions; each is compiled for every shape that occurs."""

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        constrain: Callable[[Any], Any] = lambda tree: tree,
    ):
        """
        Args:
          policy: The model.
          sampling: The settings.
          constrain: Says how rows and their caches lie on the devices, and returns them.
        """
        self.policy, self.sampling = policy, sampling
        self._plans: dict[tuple, DecodingPlan] = {}

        def request(prompts: tuple, key: jax.Array, first_sample: jax.Array) -> Request:
            ids, mask, index, limits = prompts
            samples = first_sample + jnp.arange(sampling.group_size)
            return Request(
                prompt_ids=ids,
                prompt_mask=mask,
                keys=sample_keys(key, index, samples),
                limits=jnp.repeat(
                    jnp.minimum(limits, sampling.max_new_tokens), sampling.group_size
                ),
            )

        @functools.partial(jax.jit, static_argnums=0)
        def whole(
            plan: DecodingPlan, params: Params, prompts: tuple, key: jax.Array, first_sample
        ) -> Rollout:
            asked = request(prompts, key, first_sample)
            params = policy.to_decode(params)
            columns = sampling.max_new_tokens
            state = constrain(start(policy, params, sampling, asked, plan.slots, columns))
            sizes = row_counts(plan.slots) if plan.kind == "shrink" else [plan.slots]
            for i, size in enumerate(sizes):
                if i > 0:
                    state = constrain(rearrange(policy, state, size, columns))
                # Rows that wait keep a queue going far longer than one row takes.
                steps = len(asked.keys) * columns
                low = sizes[i + 1] if i + 1 < len(sizes) else 0
                state = advance(policy, params, sampling, asked, state, steps, low)
            return to_rollout(sampling, asked, state)

        @functools.partial(jax.jit, static_argnums=(0, 1))
        def begin(
            slots: int, columns: int, params: Params, prompts: tuple, key: jax.Array, first_sample
        ):
            asked = request(prompts, key, first_sample)
            state = constrain(start(policy, params, sampling, asked, slots, columns))
            return asked, state, view(state)

        @functools.partial(jax.jit, donate_argnums=2)
        def go_on(params: Params, asked: Request, state: State, steps: int, until_alive: int):
            state = constrain(advance(policy, params, sampling, asked, state, steps, until_alive))
            return state, view(state)

        @functools.partial(jax.jit, static_argnums=(1, 2))
        def move(state: State, rows: int, columns: int) -> State:
            return constrain(rearrange(policy, state, rows, columns))

        @functools.partial(jax.jit, static_argnums=1)
        def tails(state: State, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
            slots = state.slots
            ends = jnp.broadcast_to(slots.t, slots.row.shape)
            places = jnp.maximum(ends - width, 0)[:, None] + jnp.arange(width)[None]
            ids = jnp.take_along_axis(slots.columns.ids, places, axis=1, mode="clip")
            return ids, ends, slots.alive

        @functools.partial(jax.jit, donate_argnums=1)
        def cut_alive(asked: Request, state: State, lengths: jax.Array) -> tuple[State, View]:
            state = cut(state, lengths)
            if state.queue is not None:  # while rows wait, every slot has one
                state = constrain(refill(sampling, asked, state))
            return state, view(state)

        self.whole, self.begin, self.go_on, self.move = whole, begin, go_on, move
        self.tails, self.cut = tails, cut_alive
        self.known = jax.jit(so_far)
        self.to_decode = jax.jit(policy.to_decode)
        self.finish = jax.jit(functools.partial(to_rollout, sampling))
        self.trim = jax.jit(functools.partial(trim, sampling))

    def plan(self, config: DecodingConfig, params: Params, prompt_ids: jax.Array) -> DecodingPlan:
        """The decoding for prompts of this shape on their devices; worked out once."""
        devices = jax.devices()[:1]
        if isinstance(prompt_ids, jax.Array) and not isinstance(prompt_ids, jax.core.Tracer):
            devices = prompt_ids.devices()
        shape = (*prompt_ids.shape, frozenset(devices))
        if shape not in self._plans:
            memory = functools.partial(device_memory, devices)
            self._plans[shape] = self.decoding(config, params, *prompt_ids.shape, memory)
        return self._plans[shape]

    def decoding(
        self,
        config: DecodingConfig,
        params: Params,
        prompts: int,
        length: int,
        memory: Callable[[], float],
    ) -> DecodingPlan:
        """The decoding for so many prompts of a length on devices that have so many bytes
        together.
        """

        def fits() -> int:
            return rows_that_fit(
                config.memory_share * memory(),
                prompts * cache_bytes(self.policy, params, length, 0),
                cache_bytes(self.policy, params, length, self.sampling.max_new_tokens),
            )

        return choose(config, prompts * self.sampling.group_size, fits)
