"""Jitted programs of a sampler."""

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
    column_counts,
    device_memory,
    plan_decoding,
    row_counts,
    rows_that_fit,
)
from entropy_rl.rollout.decode import advance, refill, sample_keys, start
from entropy_rl.rollout.state import (
    Request,
    Sampling,
    State,
    Status,
    partial_completions,
    rearrange,
    status_of,
    stop_rows,
    to_rollout,
    truncate,
)
from entropy_rl.types import Params, Policy, Rollout


def keep_params(params: Params) -> Params:
    """Return its argument: the `to_decode` of a policy that is given decoding parameters."""
    return params


class SamplerPrograms:
    """Jitted functions of a sampler, compiled per shape on first use."""

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
          constrain: Applies sharding constraints to rows and their caches.
        """
        self.policy, self.sampling = policy, sampling
        self._plans: dict[tuple, DecodingPlan] = {}
        adapters = sampling.adapters

        def make_request(prompts: tuple, key: jax.Array, first_sample: jax.Array) -> Request:
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
        def run(
            plan: DecodingPlan, params: Params, prompts: tuple, key: jax.Array, first_sample
        ) -> Rollout:
            request = make_request(prompts, key, first_sample)
            params = policy.to_decode(params)
            columns = sampling.max_new_tokens
            state = constrain(start(policy, params, sampling, request, plan.slots, columns))
            sizes = row_counts(plan.slots, adapters) if plan.kind == "compact" else [plan.slots]
            for i, size in enumerate(sizes):
                if i > 0:
                    state = constrain(rearrange(policy, state, size, columns, adapters))
                # A queue lasts far longer than one row.
                steps = len(request.keys) * columns
                low = sizes[i + 1] if i + 1 < len(sizes) else 0
                state = advance(policy, params, sampling, request, state, steps, low)
            return to_rollout(sampling, request, state)

        @functools.partial(jax.jit, static_argnums=(0, 1))
        def begin(
            slots: int, columns: int, params: Params, prompts: tuple, key: jax.Array, first_sample
        ):
            request = make_request(prompts, key, first_sample)
            state = constrain(start(policy, params, sampling, request, slots, columns))
            return request, state, status_of(state, adapters)

        @functools.partial(jax.jit, donate_argnums=2)
        def decode(params: Params, request: Request, state: State, steps: int, until_alive: int):
            state = constrain(advance(policy, params, sampling, request, state, steps, until_alive))
            return state, status_of(state, adapters)

        @functools.partial(jax.jit, static_argnums=(1, 2))
        def resize(state: State, rows: int, columns: int) -> State:
            return constrain(rearrange(policy, state, rows, columns, adapters))

        @functools.partial(jax.jit, static_argnums=1)
        def tails(state: State, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
            slots = state.slots
            ends = jnp.broadcast_to(slots.t, slots.row.shape)
            places = jnp.maximum(ends - width, 0)[:, None] + jnp.arange(width)[None]
            ids = jnp.take_along_axis(slots.completions.ids, places, axis=1, mode="clip")
            return ids, ends, slots.alive

        @functools.partial(jax.jit, donate_argnums=1)
        def stop(request: Request, state: State, lengths: jax.Array) -> tuple[State, Status]:
            state = stop_rows(state, lengths)
            if state.queue is not None:  # while rows wait, every slot is in use
                state = constrain(refill(sampling, request, state))
            return state, status_of(state, adapters)

        self.run, self.begin, self.decode, self.resize = run, begin, decode, resize
        self.tails, self.stop = tails, stop
        self.partial = jax.jit(partial_completions)
        # A jitted identity would copy the parameters.
        keeps = policy.to_decode is keep_params
        self.to_decode = policy.to_decode if keeps else jax.jit(policy.to_decode)
        self.finish = jax.jit(functools.partial(to_rollout, sampling))
        self.truncate = jax.jit(functools.partial(truncate, sampling))

    def plan(self, config: DecodingConfig, params: Params, prompt_ids: jax.Array) -> DecodingPlan:
        """Plan the decoding of prompts of this shape on their devices; cached per shape."""
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
        """Plan the decoding of a rollout.

        Args:
          config: The `decoding` section.
          params: The parameters, or their shapes.
          prompts: Number of prompts.
          length: Tokens per prompt, including padding.
          memory: Returns the total memory of the devices, in bytes.
        """

        def fits() -> int:
            of_prompt, of_row = (
                cache_bytes(self.policy, params, length, columns, adapters)
                for columns in (0, self.sampling.max_new_tokens)
            )
            columns = column_counts(self.sampling.max_new_tokens)
            grows = config.chunk_steps is not None and len(columns) > 1
            return rows_that_fit(
                config.memory_share * memory(),
                rows,
                prompts,
                of_prompt,
                of_row - of_prompt,
                columns[-2] / columns[-1] if grows else 0.0,
                adapters,
            )

        adapters, rows = self.sampling.adapters, prompts * self.sampling.group_size
        plan = plan_decoding(config, rows, fits)
        if adapters > 1 and plan.kind == "refill":
            raise ValueError(
                f"decoding.slots: must be null or at least {rows}, the rows of {adapters} stacked "
                f"adapters, got {plan.slots}"
                + (", as many as fit into memory" if config.slots is None else "")
            )
        return plan
