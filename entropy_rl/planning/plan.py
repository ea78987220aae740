"""Plan of one run: memory, work and time per step, from ahead-of-time compilation."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from entropy_rl.config.plan import PlanConfig
from entropy_rl.planning.abstract import AbstractRun, abstract_run
from entropy_rl.planning.devices import Devices
from entropy_rl.planning.estimate import UPDATE_OF_POLICY, Layout, Work, estimate, step_seconds
from entropy_rl.planning.fit import what_is_too_large
from entropy_rl.planning.shapes import Architecture
from entropy_rl.planning.step import Step, compile_step, resident_bytes, sampler
from entropy_rl.rollout.batching import DecodingPlan, device_memory
from entropy_rl.types import DATA_AXES, TENSOR_AXIS

_SECONDS_PER_HOUR = 3600


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of a run. Bytes and operations are per chip.

    Attributes:
      config: The config of the run.
      devices: The target devices.
      layout: Distribution of the work over chips and hosts.
      decoding: Decoding plan of the rollout of a host.
      memory: Memory of a chip in bytes.
      resident: Bytes of arrays kept in memory throughout, by name.
      step: The compiled programs.
      works: Work of the phases of a step, counted from the shapes.
      too_large: Description of what does not fit; None if everything fits.
    """

    config: PlanConfig
    devices: Devices
    layout: Layout
    decoding: DecodingPlan
    memory: float
    resident: dict[str, int]
    step: Step
    works: list[Work]
    too_large: str | None

    @property
    def new_tokens(self) -> float:
        """Assumed tokens per completion."""
        return self.config.mean_new_tokens or self.config.rollout.max_new_tokens

    @property
    def step_seconds(self) -> float | None:
        """Minimum seconds of a step that updates policy and critic; None without rates."""
        return step_seconds(self.works)

    def totals(self) -> dict[str, float]:
        """Return seconds, tokens per second, hours and chip-hours; empty without rates."""
        seconds = self.step_seconds
        if seconds is None:
            return {}
        # In the warm-up of a critic the policy is not updated.
        critic, steps = self.config.critic, self.config.steps
        alone = 0 if critic is None else min(critic.warmup_steps, steps)
        of_policy = sum(work.seconds for work in self.works if work.name in UPDATE_OF_POLICY)
        hours = (seconds * steps - of_policy * alone) / _SECONDS_PER_HOUR
        tokens = self.config.rollout.prompts * self.config.rollout.group_size * self.new_tokens
        return {
            "step_seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "hours": hours,
            "chip_hours": hours * self.layout.chips,
        }

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        phases = [
            dataclasses.asdict(phase.program)
            | {
                "beside": phase.beside,
                "peak": phase.peak,
                "collectives": [
                    c._asdict() | amount._asdict()
                    for c, amount in phase.program.collectives.items()
                ],
            }
            for phase in self.step.phases
        ]
        return {
            "devices": self.devices.name,
            "chips": self.layout.chips,
            "hosts": self.devices.hosts,
            "mesh": {axis: getattr(self.layout, axis) for axis in (*DATA_AXES, TENSOR_AXIS)},
            "max_tokens_per_micro_batch": self.config.batching.max_tokens_per_micro_batch,
            "chip": self.devices.chip and self.devices.chip._asdict(),
            "memory": self.memory,
            "decoding": self.decoding._asdict(),
            "resident": self.resident,
            "cache": self.step.cache,
            "process": self.step.process,
            "programs": phases,
            "work": [dataclasses.asdict(work) for work in self.works],
            "new_tokens": self.new_tokens,
            "efficiency": self.config.efficiency,
            "steps": self.config.steps,
            **self.totals(),
            "fits": self.too_large is None,
            "too_large": self.too_large,
        }


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)


def make_plan(config: PlanConfig, architecture: Architecture, devices: Devices) -> Plan:
    """Compile the programs of a run and count its work.

    Raises:
      ValueError: If the config does not fit the devices or the models.
    """
    run, memory = abstract_run(config, architecture, devices), chip_memory(devices)
    programs, decoding = sampler(run, memory)
    step, layout = compile_step(run, programs, decoding, say), layout_of(run)
    return Plan(
        config=config,
        devices=devices,
        layout=layout,
        decoding=decoding,
        memory=memory,
        resident=resident_bytes(run),
        step=step,
        works=work_of(config, architecture, layout, decoding, devices),
        too_large=what_is_too_large(step.phases, memory, config, decoding),
    )


def chip_memory(devices: Devices) -> float:
    """Return the memory of a device in bytes; virtual devices share the host's memory."""
    if devices.chip is not None:
        return devices.chip.hbm
    return device_memory(devices.all) / len(devices.all)


def layout_of(run: AbstractRun) -> Layout:
    """Return the layout of a run."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} if run.mesh is None else dict(run.mesh.shape)
    return Layout(**sizes, local_chips=run.local_chips, local_prompts=run.local_prompts)


def work_of(
    config: PlanConfig,
    architecture: Architecture,
    layout: Layout,
    decoding: DecodingPlan,
    devices: Devices,
) -> list[Work]:
    """Count the work of the phases of a step at the config's completion length."""
    new = config.mean_new_tokens or config.rollout.max_new_tokens
    return estimate(config, architecture, layout, decoding, new, devices.chip, config.efficiency)
