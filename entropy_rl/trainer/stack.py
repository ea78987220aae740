"""Runs of adapters that are trained together on one frozen base.

Their completions are sampled side by side, in one program with the rows of all runs. All else is
done run by run, by the functions of a run alone, on the one copy of the base. What a run samples
differs from what it would sample alone by the rounding of a product with more rows: prompts, random
numbers and initial adapters are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.advantages import Transform
from entropy_rl.config.checks import at_place, require
from entropy_rl.config.stack import check_devices, check_stack
from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.distributed.sharding import make_mesh
from entropy_rl.escape import echo
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.experience.sampler import Sampled, split_greedy
from entropy_rl.models.lora import stack_adapters
from entropy_rl.rollout import DecodingProgress
from entropy_rl.runs.checkpoint import undamaged_steps
from entropy_rl.runs.directory import checkpoint_directory
from entropy_rl.runs.load_model import Model
from entropy_rl.runs.logging import Progress
from entropy_rl.runs.preemption import StopRequest, catch_signals
from entropy_rl.trainer.check_config import build_methods
from entropy_rl.trainer.open_run import InStack
from entropy_rl.trainer.prepare import split_rows
from entropy_rl.trainer.programs import make_sampler
from entropy_rl.trainer.run import decoding_notes
from entropy_rl.trainer.setup import Setup, set_up
from entropy_rl.trainer.training_run import TrainingRun, open_training
from entropy_rl.types import Params, TrainState


def set_up_stack(configs: Sequence[TrainConfig]) -> list[Setup]:
    """Check configs, and build what their runs are made of, on one copy of the base.

    Raises:
      ValueError: If something in the configs cannot work; before any training.
    """
    check_runs(configs)
    require(hosts.count() == 1, "processes", hosts.count(), "1 for runs that train together")
    mesh = make_mesh(configs[0].mesh)
    check_devices(1 if mesh is None else mesh.size)
    setups: list[Setup] = []
    for i, config in enumerate(configs):
        with at_place(f"runs[{i}]"):
            setups.append(set_up(config, setups))
    for i, setup in enumerate(setups):
        length, first = setup.prompts.length, setups[0].prompts.length
        require(length == first, f"runs[{i}]", length, "as long prompts as runs[0]")
    return setups


def check_runs(configs: Sequence[TrainConfig]) -> None:
    """Check the methods of runs, and that the runs can be trained together.

    Raises:
      ValueError: If something in the configs cannot work; the message begins with its place.
    """
    check_stack(configs)
    needs_greedy = []
    for i, config in enumerate(configs):
        with at_place(f"runs[{i}]"):
            needs_greedy.append(_needs_greedy(build_methods(config).advantage))
            all_or_none = "one with a greedy completion in all runs or in none"
            require(needs_greedy[i] == needs_greedy[0], "advantage", config.advantage, all_or_none)


def _needs_greedy(advantage: Transform) -> bool:
    return "greedy_rewards" in advantage.requires


class Stack(NamedTuple):
    """The open runs of a stack.

    Attributes:
      runs: The runs.
      states: Where they go on from, all at the same step.
      sample: Samples a step of all runs.
      progress: Of the stack.
      stop: The signal that stops it.
    """

    runs: list[TrainingRun]
    states: list[TrainState]
    sample: StackedSampler
    progress: Progress
    stop: StopRequest

    def begin_run(self, i: int) -> None:
        """Start the clock of a run, after its share of the rollout, and show whose turn it is."""
        self.runs[i].clock.restart(rollout=self.sample.seconds)
        self.progress.phase(f"verdicts and updates of run {i + 1} of {len(self.runs)}")

    def end_step(self, step: int, states: Sequence[TrainState], correct: Sequence[float]) -> None:
        """Show the progress, and stop if that was asked for.

        Args:
          step: The step, from 0.
          states: The states after it.
          correct: The fraction of correct completions of each run.

        Raises:
          Interrupted: If the stack was asked to stop; all states are saved.
        """
        note = " ".join(f"{fraction:.3f}" for fraction in correct)
        self.progress.show(step + 1, f"correct {note}")
        if self.stop:
            save_all(self.runs, states)
            self.stop.act(f"stopped after step {step + 1}; the same command goes on from there")


@contextlib.contextmanager
def open_stack(setups: Sequence[Setup]) -> Iterator[Stack]:
    """Open the runs of a stack, all at the newest step for which each has a checkpoint."""
    with contextlib.ExitStack() as opened:
        stop = opened.enter_context(catch_signals())
        last_step = _common_step([setup.config for setup in setups])
        # The stack looks at its signal between steps of all runs, a run never.
        shared = InStack(StopRequest(), last_step)
        found = [opened.enter_context(open_training(setup, shared)) for setup in setups]
        runs, states = map(list, zip(*found, strict=True))
        title = f"{len(runs)} runs, step"
        progress = Progress(title, setups[0].config.steps, last_step)
        opened.enter_context(progress)
        sample = StackedSampler(runs, progress, stop)
        yield Stack(runs, states, sample, progress, stop)


def _common_step(configs: Sequence[TrainConfig]) -> int:
    """Return the newest step for which all runs have a checkpoint; 0 if there is none.

    Raises:
      ValueError: A run is further ahead than by the one checkpoint that others may lack when all
        are killed while they save: what it has would be lost.
    """
    runs = [config.run for config in configs]
    saved = [undamaged_steps(checkpoint_directory(Path(r.directory), r.checkpoints)) for r in runs]
    common = max(set(saved[0]).intersection(*saved[1:]), default=0)
    for i, (run, steps) in enumerate(zip(runs, saved, strict=True)):
        ahead = sorted(step for step in steps if step > common)
        if len(ahead) > 1:
            raise ValueError(
                f"runs[{i}].run.directory: must not be ahead of the newest checkpoint of all runs, "
                f"which is of step {common}, got {run.directory} with checkpoints of steps "
                f"{', '.join(map(str, ahead))}"
            )
        if ahead:
            echo(f"{run.directory}: back from step {ahead[0]} to {common}", file=sys.stderr)
    return common


def save_all(runs: Sequence[TrainingRun], states: Sequence[TrainState]) -> None:
    """Save the states of all runs."""
    for run, state in zip(runs, states, strict=True):
        run.on_disk.save(state)


def make_stacked_cast(model: Model) -> Any:
    """Build the jitted function (base parameters, adapters of the runs) -> decoding parameters.

    One program, so that neither stacked nor scaled adapters are kept beside their result.
    """

    def cast(frozen: Params, adapters: list[Params]) -> Params:
        base = dataclasses.replace(model.base, params=frozen)
        return model.policy.to_decode(base.join(stack_adapters(adapters)))

    return jax.jit(cast)


class StackedSampler:
    """Samples the completions of a step of several runs side by side.

    Attributes:
      seconds: The share of each run in the time of the last call.
    """

    seconds = 0.0

    def __init__(self, runs: Sequence[TrainingRun], progress: Progress, stop: StopRequest):
        """
        Args:
          runs: The runs.
          progress: Shows the progress of the decoding.
          stop: The signal that stops the stack.
        """
        self._runs, self._show, self._stop = runs, decoding_notes(progress), stop
        setup = runs[0].setup
        self._model, self._greedy = setup.model, _needs_greedy(setup.advantage)
        self._cast = make_stacked_cast(setup.model)
        self._generate = make_sampler(setup.config, self._model, self._greedy, adapters=len(runs))
        self._keys = jnp.stack([jax.random.key(run.setup.config.seed) for run in runs])

    def __call__(
        self, states: Sequence[TrainState], batches: Sequence[PromptBatch], step: int
    ) -> list[tuple[Sampled, Sampled | None]]:
        """Sample a group of completions for each prompt.

        Args:
          states: Give the adapters.
          batches: The prompts of each run.
          step: The step, from 0.

        Returns:
          As `Sampler.sample`, for each run.

        Raises:
          Interrupted: If the stack was asked to stop; all states are saved.
        """
        model, begin = self._model, time.perf_counter()
        parts = ((batch.ids, batch.mask, batch.index) for batch in batches)
        prompts = [np.concatenate(x) for x in zip(*parts, strict=True)]
        rollout = self._generate(
            self._cast(model.base.params, [state.params for state in states]),
            *model.placement.put_prompts(tuple(prompts)),
            jax.vmap(jax.random.fold_in, (0, None))(self._keys, step),
            on_chunk=self._watch(states),
        )
        parts = split_rows(jax.device_get(rollout), len(states))
        self.seconds = (time.perf_counter() - begin) / len(states)
        sampled = [Sampled(part) for part in parts]
        return [split_greedy(one) if self._greedy else (one, None) for one in sampled]

    def _watch(self, states: Sequence[TrainState]) -> Callable[[DecodingProgress], None]:
        def watch(progress: DecodingProgress) -> None:
            self._show(progress)
            if self._stop:
                save_all(self._runs, states)
                message = "stopped during a rollout; the same command repeats it and goes on"
                self._stop.act(message)

        return watch
