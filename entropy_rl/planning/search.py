"""Search over meshes and micro-batch sizes: rank by shapes, compile the fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp

from entropy_rl.config.common import MeshConfig
from entropy_rl.config.plan import PlanConfig
from entropy_rl.planning.abstract import AbstractRun, abstract_run
from entropy_rl.planning.chips import GiB
from entropy_rl.planning.compiled import tree_bytes
from entropy_rl.planning.decoding import rollout_of
from entropy_rl.planning.devices import Devices
from entropy_rl.planning.estimate import Layout, step_seconds
from entropy_rl.planning.plan import TrainPlan, chip_memory, make_plan, say, work_of
from entropy_rl.planning.shapes import Architecture
from entropy_rl.report.terminal import aligned

_HEAD_BYTES = GiB  # a few chunks of logits in float32, and what the head gathers


class Candidate(NamedTuple):
    """A candidate config.

    Attributes:
      seconds: Lower bound on the seconds of a step.
      config: The config.
      layout: Layout of its mesh.
    """

    seconds: float
    config: PlanConfig
    layout: Layout


def search(config: PlanConfig, architecture: Architecture, devices: Devices) -> list[TrainPlan]:
    """Compile the `config.search` candidates that are fastest by their shapes and seem to fit.

    Returns:
      Their plans; first those that fit, each group sorted by time.

    Raises:
      ValueError: If no candidate is left, or the chip's rates are unknown.
    """
    if devices.chip is None:
        raise ValueError(
            "search: must be 0 without --topology or --chip, which give the rates of a chip"
        )
    memory = chip_memory(devices)
    found, refused = [], []
    for candidate in _candidates(config, devices):
        try:
            run = abstract_run(candidate, architecture, devices)
        except ValueError as error:
            refused.append(str(error))
            continue
        layout = Layout.of(run.mesh, run.local_chips, run.local_prompts)
        if rough_bytes(run, architecture, layout) > memory:
            continue
        decoding = rollout_of(run, memory).decoding
        works = work_of(candidate, architecture, layout, decoding, devices)
        found.append(Candidate(step_seconds(works), candidate, layout))
    if not found:
        reason = refused[0] if refused else "by the shapes, none of them fits"
        raise ValueError(f"search: no mesh and micro-batch is left: {reason}")
    found.sort(key=lambda candidate: candidate.seconds)
    say(f"search: {len(found)} seem to fit; compiling the fastest {min(len(found), config.search)}")
    plans = []
    for number, candidate in enumerate(found[: config.search], 1):
        say(f"search: {number}: {describe(candidate.layout, candidate.config)}")
        plans.append(make_plan(candidate.config, architecture, devices))
    return sorted(plans, key=lambda plan: (plan.too_large is not None, plan.step_seconds))


def _candidates(config: PlanConfig, devices: Devices) -> Iterator[PlanConfig]:
    chips, rollout = len(devices.all), config.rollout
    longest = rollout.max_prompt_tokens + rollout.max_new_tokens
    rows = config.batching.mini_batch_prompts * rollout.group_size
    for tensor in _divisors(chips // devices.hosts):
        for fsdp in _divisors(chips // tensor):
            mesh = MeshConfig(data=chips // tensor // fsdp, fsdp=fsdp, tensor=tensor)
            in_share = max(1, rows * tensor // chips)
            for at_once in (2**k for k in range(in_share.bit_length())):
                batching = dataclasses.replace(
                    config.batching, max_tokens_per_micro_batch=longest * at_once
                )
                yield dataclasses.replace(config, mesh=mesh, batching=batching)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def rough_bytes(run: AbstractRun, architecture: Architecture, layout: Layout) -> float:
    """Estimate the bytes of a policy update on a chip.

    Counts the training state with that of a critic, a frozen base, a teacher, one gradient, and
    activations.
    """
    c, config = architecture.policy, run.config
    size, tensor = jnp.dtype(config.model.compute_dtype).itemsize, layout.tensor
    heads = (c.num_heads + c.num_kv_heads) * c.head_dim
    dots = 4 * c.hidden_size + 2 * heads + 2 * c.intermediate_size
    stored = {"none": 2 * dots / tensor, "dots": dots / tensor, "full": c.hidden_size}[
        config.model.remat
    ]
    activations = size * (c.num_layers * stored + 4 * dots / tensor)
    base = None if run.model.base is None else run.model.base.params
    kept = tree_bytes((run.state, base, run.teacher)) + tree_bytes(run.state.params)
    return kept + config.batching.max_tokens_per_micro_batch * activations + _HEAD_BYTES


def search_text(plans: list[TrainPlan]) -> str:
    """Format the compiled candidates as a table."""
    rows = [("data x fsdp x tensor, tokens per micro-batch", "peak GiB", "s per step", "")]
    for plan in plans:
        peak = max(phase.peak for phase in plan.step.phases)
        fits = "fits" if plan.too_large is None else "too large"
        rows.append(
            (
                describe(plan.layout, plan.config),
                f"{peak / GiB:.2f}",
                f"{plan.step_seconds:.1f}",
                fits,
            )
        )
    return aligned(rows)


def describe(layout: Layout, config: PlanConfig) -> str:
    """Describe the mesh and micro-batch size of a candidate."""
    tokens = config.batching.max_tokens_per_micro_batch
    return f"{layout.data} x {layout.fsdp} x {layout.tensor}, {tokens}"
