"""`TrainingRun`: evaluations, metrics, samples and checkpoints of a training run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.escape import echo
from entropy_rl.experience.experience import Experience
from entropy_rl.experience.metrics import gather_rows, rollout_metrics
from entropy_rl.experience.records import Row, group_rows
from entropy_rl.learner.advantage_log import advantage_fields
from entropy_rl.report import run_summary
from entropy_rl.runs.compile_log import CompileLog, compile_log
from entropy_rl.runs.load_model import Model, count_unused, keep_model_files
from entropy_rl.runs.logging import Clock
from entropy_rl.tasks import closing
from entropy_rl.trainer.open_run import InStack, open_run
from entropy_rl.trainer.prepare import TrainData
from entropy_rl.trainer.run import Run
from entropy_rl.trainer.setup import Setup
from entropy_rl.trainer.updates import moments_in
from entropy_rl.types import TrainState


class TrainingRun:
    """Evaluations, metrics, samples and checkpoints of a training run.

    Attributes:
      setup: What the run is made of.
      on_disk: Its checkpoints, records and evaluations, and the stop signal.
      clock: Times the phases of a step.
    """

    def __init__(self, setup: Setup, on_disk: Run, compiled: CompileLog):
        self.setup, self.on_disk, self.clock = setup, on_disk, Clock(on_disk.progress.phase)
        self._compiled, self._evaluation_steps = compiled, _evaluation_steps(setup.config)

    def begin(self, step: int, state: TrainState) -> None:
        """Begin a step: evaluate if that is due, and start the clock.

        Args:
          step: The step, from 0.
          state: The state before it.

        Raises:
          Interrupted: If the run was asked to stop during the evaluation.
        """
        self._evaluate(step, state)
        self.on_disk.begin_step(step + 1)
        self.clock.restart()

    def record(
        self,
        step: int,
        state: TrainState,
        metrics: dict[str, float],
        experience: Experience,
        data: TrainData,
    ) -> dict[str, float]:
        """Write metrics, samples and, if that is due, a checkpoint; collective.

        Args:
          step: The step, from 0.
          state: The state after it.
          metrics: Of the updates.
          experience: What was sampled.
          data: The mini-batches, whose first gives the advantages of the recorded samples.

        Returns:
          The metrics of the step.

        Raises:
          Interrupted: If the run was asked to stop; its state is saved.
        """
        rows = gather_rows(experience.rows)
        tokens = int(rows.lengths.sum())
        metrics = rollout_metrics(rows, experience.groups.group_size) | metrics
        if self.setup.model.base is not None:
            metrics["trainable_parameters"] = count_numbers(state.params)
        metrics |= self.clock.metrics(tokens=tokens)
        metrics |= _verdict_speed(metrics, experience.scored)
        self.on_disk.records.metrics(step + 1, metrics)
        samples = self._samples(experience, data)
        self.on_disk.records.samples({"step": step + 1} | row for row in samples)
        self._compiled.report(self.on_disk.progress.say)
        self.on_disk.progress.show(step + 1, _note(metrics))
        self.on_disk.end_step(step + 1, state)
        return metrics

    def finish(self, state: TrainState) -> None:
        """Evaluate after the last step if the config asks for it.

        Raises:
          Interrupted: If the run was asked to stop during the evaluation.
        """
        self._evaluate(self.setup.config.steps, state)

    def _evaluate(self, step: int, state: TrainState) -> None:
        if step not in self._evaluation_steps:
            return
        if step > 0:  # before the first step there is nothing to lose
            self.on_disk.save(state)
        setup = self.setup
        params = setup.model.params_with(state.params)
        self.on_disk.evaluate(step, setup.model, params, setup.task, setup.test_prompts)

    def _samples(self, experience: Experience, data: TrainData) -> list[Row]:
        setup = self.setup
        rows = group_rows(
            experience.groups,
            setup.task,
            setup.model.tokenizer,
            setup.prompts,
            setup.config.run.samples_per_step,
        )
        if not rows:
            return []
        found = hosts.fetch(setup.programs.advantages(data.batches[0]))
        return [
            row | more for row, more in zip(rows, advantage_fields(found, len(rows)), strict=True)
        ]


@contextlib.contextmanager
def open_training(
    setup: Setup, stack: InStack | None = None
) -> Iterator[tuple[TrainingRun, TrainState]]:
    """Open the run of a setup; at the end, close its task and rewards, and print a summary.

    Args:
      setup: What the run is made of.
      stack: Of a run that is trained together with others.

    Yields:
      The run, and the state to continue from: that of the newest checkpoint, or the initial one.
    """
    with (
        closing(setup.task),
        contextlib.closing(setup.rewards),
        compile_log() as compiled,
        open_run(setup.config, setup.start, "step", setup.identity, stack=stack) as (run, state),
    ):
        if hosts.is_first():
            keep_model_files(setup.model, Path(setup.config.run.directory))
        hosts.wait_for_all("model files")
        run.progress.say(setup.decisions)
        count_recorded(setup.model, state)
        if setup.config.optimizer.offload:
            state = moments_in("pinned_host", state)
        yield TrainingRun(setup, run, compiled), state
    if hosts.is_first():
        echo(run_summary(Path(setup.config.run.directory), setup.config.steps))


def count_recorded(model: Model, state: TrainState) -> int:
    """Count in the log the tokens of a replay buffer that are none of the tokenizer's.

    Earlier versions sampled them where the vocabulary of the model is the larger one.
    """
    if state.replay_buffer is None or not model.unused:
        return 0
    rows = state.replay_buffer.rows
    recorded = rows["completion_ids"], rows["completion_mask"]
    return count_unused(model, [recorded], "the replay buffer")


def count_numbers(tree: Any) -> int:
    """Return the number of numbers in a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(tree))


def _evaluation_steps(config: TrainConfig) -> set[int]:
    if config.evaluation is None:
        return set()
    every = config.run.evaluate_every
    return {0, config.steps} | (set(range(0, config.steps, every)) if every else set())


def _verdict_speed(metrics: dict[str, Any], verdicts: int) -> dict[str, float]:
    # Without `time/waiting_for_verdicts` nothing else is computed during the verdicts.
    waited = metrics.get("time/waiting_for_verdicts", metrics["time/verdicts"])
    return {
        "time/verdicts_per_second": verdicts / metrics["time/verdicts"],
        "time/share_waiting_for_verdicts": waited / metrics["time/step"],
    }


def _note(metrics: dict[str, float]) -> str:
    """The line of a step on the terminal."""
    forms = {
        **{"correct": ".3f", "length": ".1f", "entropy": ".3f", "bonus_share": ".3f"},
        **{"explained_variance": ".3f", "time/step": ".1f"},
    }
    found = {name: f"{metrics[name]:{form}}" for name, form in forms.items() if name in metrics}
    return "  ".join(f"{name.removeprefix('time/')} {text}" for name, text in found.items())
