"""The rollouts of a step and of an evaluation as shapes, and the compilation of their programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.planning.abstract import AbstractRun
from entropy_rl.planning.compiled import tree_bytes
from entropy_rl.planning.estimate import sampled_group
from entropy_rl.rollout.batching import DecodingPlan, column_counts, row_counts
from entropy_rl.rollout.programs import SamplerPrograms
from entropy_rl.rollout.state import Sampling
from entropy_rl.types import Params


class AbstractRollout(NamedTuple):
    """A call of the sampler of a host.

    Attributes:
      programs: The sampler.
      decoding: Its decoding plan.
      params: The shapes of the decoding parameters.
      prompts: Those of (ids, mask, index, limits) of the prompts.
    """

    programs: SamplerPrograms
    decoding: DecodingPlan
    params: Params
    prompts: tuple


def rollout_of(run: AbstractRun, memory: float) -> AbstractRollout:
    """Return the rollout of a step.

    Args:
      run: The run.
      memory: Memory of a device in bytes.
    """
    rollout, sampled = run.config.rollout, sampled_group(run.config, run.advantage)
    sampling = _sampling(run, rollout, sampled)._replace(
        greedy=sampled > rollout.group_size, adapters=run.stacked
    )
    return _rollout(run, sampling, run.stacked * run.local_prompts, memory)


def evaluation_of(run: AbstractRun, memory: float) -> AbstractRollout | None:
    """Return a call of an evaluation; None if it is no larger than the rollout of a step.

    Args:
      run: The run.
      memory: Memory of a device in bytes.
    """
    evaluation, rollout = run.config.evaluation, run.config.rollout
    if evaluation is None:
        return None
    group = min(evaluation.samples, evaluation.rows_per_call)
    prompts = evaluation.rows_per_call // group
    if evaluation.problems is not None:  # of this process
        prompts = min(prompts, -(-evaluation.problems // run.devices.hosts))
    of_step = run.stacked * run.local_prompts
    if (
        prompts <= of_step
        and prompts * group <= of_step * sampled_group(run.config, run.advantage)
        and evaluation.max_new_tokens <= rollout.max_new_tokens
    ):
        return None
    # Runs that train together are evaluated one after the other.
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, stacked=1))
    return _rollout(run, _sampling(run, evaluation, group), prompts, memory)


def compile_rollout(rollout: AbstractRollout, add: Callable[..., Any], of: str = "") -> int | None:
    """Compile the programs of a rollout, each at its largest shape.

    Args:
      rollout: The rollout.
      add: `Phases.add`.
      of: Goes before the names of the programs.

    Returns:
      Bytes of the cache on a device; None if it is internal to one program, or one is too large.
    """
    programs, decoding, params, prompts = rollout
    adapters, freed = programs.sampling.adapters, "decoding parameters"
    number = jax.ShapeDtypeStruct((), jnp.int32)
    keys = () if adapters == 1 else (adapters,)
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), keys))
    request = (params, prompts, key, number)
    named = {"params": params, "prompts": prompts}
    if decoding.chunk_steps is None:
        add(f"{of}rollout", programs.run.lower(decoding, *request), named, freed)
        return None
    columns = column_counts(programs.sampling.max_new_tokens)
    rows = row_counts(decoding.slots)[0]
    begun = add(f"{of}prefill", programs.begin.lower(rows, columns[0], *request), named, freed)
    if begun is None:
        return None
    asked, state, _ = begun
    if len(columns) > 1:  # the cache before it grows for the last time lies like the first
        before = jax.eval_shape(lambda state: programs.resize(state, rows, columns[-2]), state)
        state = at_places(before, jax.tree.map(lambda x: x.sharding, state))
        lowered = programs.resize.lower(state, rows, columns[-1])
        state = add(f"{of}cache growth", lowered, {"state": state})
        if state is None:
            return None
    named = {"params": params, "request": asked, "state": state}
    lowered = programs.decode.lower(params, asked, state, number, number)
    add(f"{of}decode", lowered, named, freed)
    return tree_bytes((state.slots.cache, state.queue and state.queue.prompts))


def at_places(shapes: Any, places: Any) -> Any:
    """Add a tree of shardings to a tree of shapes."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places
    )


def _sampling(run: AbstractRun, section: Any, group: int) -> Sampling:
    """Return the sampler's settings of a section `rollout` or `evaluation`."""
    return Sampling(
        group,
        section.max_new_tokens,
        run.model.eos_ids,
        run.model.pad_id,
        section.temperature,
        section.top_p,
        run.model.placement.local_shards,
    )


def _rollout(run: AbstractRun, sampling: Sampling, prompts: int, memory: float) -> AbstractRollout:
    model, params = run.model, run.decode_params()
    programs = SamplerPrograms(model.sampler, sampling, model.placement.constrain_rows)
    decoding = programs.decoding(
        run.config.decoding,
        params,
        prompts,
        run.config.rollout.max_prompt_tokens,
        lambda: memory * run.local_chips,
    )
    return AbstractRollout(programs, decoding, params, run.prompts(prompts))
