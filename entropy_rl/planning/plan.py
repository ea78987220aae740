"""Plan of one run: memory, work and time per step, from ahead-of-time compilation."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from entropy_rl.config.plan import PlanConfig, PlanSFTConfig
from entropy_rl.escape import echo
from entropy_rl.planning.abstract import abstract_run
from entropy_rl.planning.chips import usable_memory
from entropy_rl.planning.decoding import evaluation_of, rollout_of
from entropy_rl.planning.devices import Devices
from entropy_rl.planning.estimate import (
    UPDATE_OF_POLICY,
    Layout,
    Work,
    estimate,
    step_seconds,
)
from entropy_rl.planning.fit import suggest_for_training, what_is_too_large
from entropy_rl.planning.shapes import Architecture
from entropy_rl.planning.step import Step, compile_step, resident_bytes
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
      memory: Usable memory of a chip in bytes.
      resident: Bytes of arrays kept in memory throughout, by name.
      step: The compiled programs.
      works: Work of the phases of a step, counted from the shapes.
      too_large: Description of what does not fit; None if everything fits.
      rows: Description of the rows of a step in a line.
      assumption: Description of the assumed lengths.
      step_tokens: Assumed tokens of a step: of the completions of all runs that train together, or
        of rows in supervised training.
    """

    config: PlanConfig | PlanSFTConfig
    devices: Devices
    layout: Layout
    memory: float
    resident: dict[str, int]
    step: Step
    works: list[Work]
    too_large: str | None
    rows: str
    assumption: str
    step_tokens: float

    @property
    def step_seconds(self) -> float | None:
        """Minimum seconds of a step that trains all models; None without rates."""
        return step_seconds(self.works)

    @property
    def run_seconds(self) -> float | None:
        """Minimum seconds of all steps; None without rates."""
        return None if self.step_seconds is None else self.step_seconds * self.config.steps

    def totals(self) -> dict[str, float]:
        """Return seconds, tokens per second, hours and chip-hours; empty without rates."""
        seconds = self.step_seconds
        if seconds is None:
            return {}
        hours = self.run_seconds / _SECONDS_PER_HOUR
        return {
            "step_seconds": seconds,
            "tokens_per_second": self.step_tokens / seconds,
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
            "resident": self.resident,
            "process": self.step.process,
            "programs": phases,
            "work": [dataclasses.asdict(work) for work in self.works],
            "efficiency": self.config.efficiency,
            "steps": self.config.steps,
            **self.totals(),
            "fits": self.too_large is None,
            "too_large": self.too_large,
        }


@dataclasses.dataclass(frozen=True)
class TrainPlan(Plan):
    """Plan of reinforcement learning.

    Attributes:
      decoding: Decoding plan of the rollout of a host.
    """

    decoding: DecodingPlan

    @property
    def run_seconds(self) -> float | None:
        """Minimum seconds of all steps; in the warm-up of a critic the policy is not updated."""
        if self.step_seconds is None:
            return None
        critic, steps = self.config.critic, self.config.steps
        alone = 0 if critic is None else min(critic.warmup_steps, steps)
        of_policy = sum(work.seconds for work in self.works if work.name in UPDATE_OF_POLICY)
        return self.step_seconds * steps - of_policy * alone

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return super().to_plain() | {
            "decoding": self.decoding._asdict(),
            "cache": self.step.cache,
            "new_tokens": self.config.new_tokens,
        }


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    echo(line, file=sys.stderr)


def make_plan(config: PlanConfig, architecture: Architecture, devices: Devices) -> TrainPlan:
    """Compile the programs of a run and count its work.

    Raises:
      ValueError: If the config does not fit the devices or the models.
    """
    run, memory = abstract_run(config, architecture, devices), chip_memory(devices)
    of_step, evaluation = rollout_of(run, memory), evaluation_of(run, memory)
    decoding = of_step.decoding
    step, layout = (
        compile_step(run, of_step, evaluation, say),
        Layout.of(run.mesh, run.local_chips, run.local_prompts, run.stacked),
    )
    rollout, rows = config.rollout, layout.sampled_prompts * of_step.programs.sampling.group_size
    runs = "" if config.stacked == 1 else f" of {config.stacked} runs"
    return TrainPlan(
        config=config,
        devices=devices,
        layout=layout,
        decoding=decoding,
        memory=memory,
        resident=resident_bytes(run),
        step=step,
        works=work_of(config, architecture, layout, decoding, devices),
        too_large=what_is_too_large(
            step.phases,
            memory,
            lambda phase: suggest_for_training(phase, config, decoding, devices.chip is None),
        ),
        rows=f"rollout of a host: {rows} rows{runs}, {decoding.slots} decoding slots, "
        f"prompts of {rollout.max_prompt_tokens} tokens",
        assumption=f"every completion has {config.new_tokens:g} tokens",
        step_tokens=config.stacked * rollout.prompts * rollout.group_size * config.new_tokens,
    )


def chip_memory(devices: Devices) -> float:
    """Return the usable memory of a device in bytes; virtual devices share the host's memory.

    Raises:
      ValueError: As `usable_memory`.
    """
    if devices.chip is not None:
        return usable_memory(devices.chip)
    return device_memory(devices.all) / len(devices.all)


def work_of(
    config: PlanConfig,
    architecture: Architecture,
    layout: Layout,
    decoding: DecodingPlan,
    devices: Devices,
) -> list[Work]:
    """Count the work of the phases of a step at the config's completion length."""
    return estimate(
        config, architecture, layout, decoding, config.new_tokens, devices.chip, config.efficiency
    )
