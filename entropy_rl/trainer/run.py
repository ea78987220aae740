"""`Run`: checkpoints, records, evaluations and the stop signal of a run on disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from entropy_rl.config.rollout import DecodingConfig
from entropy_rl.config.sft import SFTConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.evaluation import Evaluation, OnProgress, evaluate_into, read_result
from entropy_rl.experience.prompts import Prompts
from entropy_rl.rollout import DecodingProgress
from entropy_rl.rollout.batching import describe_decoding
from entropy_rl.runs.checkpoint import Checkpoints
from entropy_rl.runs.directory import (
    CONFIG_FILE,
    EVALUATIONS_DIRECTORY,
    PROFILE_DIRECTORY,
    check_directory,
    to_plain,
)
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.runs.load_model import Model
from entropy_rl.runs.logging import NoLog, Progress, RunLog
from entropy_rl.runs.preemption import Interrupted, StopRequest
from entropy_rl.tasks import Task
from entropy_rl.types import Params, TrainState
from entropy_rl.yaml_text import dump_yaml


class Run:
    """Checkpoints, records, evaluations and the stop signal of a run on disk.

    Attributes:
      records: Writes metrics and samples.
      progress: Prints progress to the terminal.
      stop: The signal that stops the run.
    """

    def __init__(
        self,
        config: TrainConfig | SFTConfig,
        checkpoints: Checkpoints,
        records: RunLog | NoLog,
        progress: Progress,
        stop: StopRequest,
    ):
        self.records, self.progress, self.stop = records, progress, stop
        self._config, self._checkpoints = config, checkpoints
        self._show_decoding = decoding_notes(progress)

    def save(self, state: TrainState) -> None:
        """Save the state, unless its step has a checkpoint."""
        self._checkpoints.save(state)

    def asked_to_stop(self) -> bool:
        """Whether any process received a signal to stop; collective."""
        number = max(hosts.gather(self.stop.signal_number or 0))
        if number:  # never cleared: a signal received since then counts in the next call
            self.stop.signal_number = number
        return bool(number)

    def evaluate(
        self, step: int, model: Model, params: Params, task: Task, prompts: Prompts
    ) -> Evaluation:
        """Evaluate after a step. A complete evaluation is not repeated, an incomplete one resumed.

        Args:
          step: Number of completed steps.
          model: Policy and tokenizer.
          params: Parameters after these steps.
          task: The task, whose judge is used.
          prompts: The problems, from `evaluation_prompts`.

        Raises:
          Interrupted: The run received a signal to stop; every finished sample is on disk.
        """
        directory = evaluation_directory(self._config, step)
        result = read_result(directory)
        if result is not None:
            if not has_settings(directory, self._config):
                self.progress.say(f"{directory} has other settings, and is kept")
            return result
        hosts.wait_for_all("no result yet")  # all have looked before one writes a result
        self.progress.say(
            f"evaluating at step {step}, on the split {self._config.evaluation.split!r}"
        )
        if hosts.is_first():
            self._begin_evaluation(directory)
        hosts.wait_for_all("evaluation begins")
        stopped = "stopped during an evaluation; the same command goes on from there"
        # With several processes, the first call comes before all of them have the parameters.
        begun = hosts.count() == 1

        def on_progress(done: int, total: int, _: float) -> None:
            nonlocal begun
            self.progress.note(f"evaluation: {done}/{total} samples")
            if begun:
                self.stop.act(stopped)
            begun = True

        def draw(on_progress: OnProgress) -> Evaluation | None:
            return evaluate_into(
                directory,
                model,
                params,
                task,
                prompts,
                self._config.evaluation,
                seed=self._config.seed,
                # SFTConfig has no section `decoding`.
                decoding=getattr(self._config, "decoding", DecodingConfig()),
                shard=(hosts.index(), hosts.count()),
                on_progress=on_progress,
            )

        # A process that stops first meets the others, which would wait for it otherwise.
        with contextlib.ExitStack() as stack:
            if hosts.count() > 1:
                stack.enter_context(contextlib.suppress(Interrupted))
            result = draw(on_progress)
        if hosts.count() > 1:
            if self.asked_to_stop():
                self.stop.act(stopped)
            # If several processes finished at the same time, none of them has seen all samples.
            result = draw(lambda done, total, waited: None)
        return result

    def _begin_evaluation(self, directory: Path) -> None:
        """Create the directory, and delete samples that were drawn with other settings."""
        if directory.exists() and not has_settings(directory, self._config):
            self.progress.say(f"{directory} has other settings, and is started again")
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        settings = dump_yaml(to_plain(self._config.evaluation))
        write_atomically(directory / CONFIG_FILE, settings)

    def rollout_watch(self, state: TrainState) -> Callable[[DecodingProgress], None]:
        """Build the callback of a rollout, which shows progress and handles a signal to stop.

        In the first rollout it also logs how rows are decoded.

        Args:
          state: The state before the step, which is saved if the run is stopped.
        """

        def watch(progress: DecodingProgress) -> None:
            self._show_decoding(progress)
            if self.stop and hosts.count() == 1:  # with several, the others do not check now
                self.save(state)
                self.stop.act("stopped during a rollout; the same command repeats it and goes on")

        return watch

    def begin_step(self, step: int) -> None:
        """Start the profiler if the config profiles this step.

        Args:
          step: The step, from 1.
        """
        if step == self._config.run.profile_step:
            self.progress.say(f"tracing step {step}")
            jax.profiler.start_trace(str(Path(self._config.run.directory) / PROFILE_DIRECTORY))

    def end_step(
        self, step: int, state: TrainState, before_save: Callable[[], None] = lambda: None
    ) -> None:
        """Save the state if a checkpoint is due, and stop if the run received a signal.

        Args:
          step: Number of completed steps; reading it from the state would wait for the device.
          state: The state after these steps.
          before_save: Called before the state is saved, which an exception in it prevents.

        Raises:
          Interrupted: The run received a signal to stop; the state is saved.
        """
        if step == self._config.run.profile_step:
            jax.profiler.stop_trace()
        # Read once: a signal between two reads would stop the run without a checkpoint.
        stopping = self.asked_to_stop()
        every = self._config.run.checkpoint_every
        if stopping or step == self._config.steps or step % every == 0:
            before_save()
            self.save(state)
        if stopping:
            self.stop.act(f"stopped after step {step}; the same command goes on from there")


def decoding_notes(progress: Progress) -> Callable[[DecodingProgress], None]:
    """Build what shows the progress of rollouts; the first call logs how rows are decoded."""
    logged = False

    def show(decoding: DecodingProgress) -> None:
        nonlocal logged
        if not logged:
            progress.say(describe_decoding(decoding.rows, decoding.slots))
            logged = True
        progress.note(
            f"rollout: {decoding.finished}/{decoding.rows} ended, longest {decoding.tokens}"
        )

    return show


def has_settings(directory: Path, config: TrainConfig | SFTConfig) -> bool:
    """Whether the evaluation in a directory has the settings of a run's `evaluation`."""
    try:
        check_directory(directory, config.evaluation, free=("rows_per_call",))
    except ValueError:
        return False
    return (directory / CONFIG_FILE).exists()


def evaluation_directory(config: TrainConfig | SFTConfig, step: int) -> Path:
    """The directory of the evaluation of a step."""
    return Path(config.run.directory) / EVALUATIONS_DIRECTORY / str(step)
