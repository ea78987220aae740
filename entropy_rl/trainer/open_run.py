"""`open_run`: lock and identify the run of a directory, and create or resume it."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from entropy_rl.config.checks import require
from entropy_rl.config.sft import SFTConfig
from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.distributed.sharding import commit
from entropy_rl.escape import echo
from entropy_rl.evaluation.samples import RESULT_FILE
from entropy_rl.runs.checkpoint import Checkpoints, newest_undamaged
from entropy_rl.runs.directory import (
    EVALUATIONS_DIRECTORY,
    checkpoint_directory,
    claimed_run,
    to_plain,
)
from entropy_rl.runs.identity import Identity, check_identity, record_identity
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.runs.logging import NoLog, Progress, RunLog
from entropy_rl.runs.preemption import StopRequest, catch_signals
from entropy_rl.runs.provenance import record_start
from entropy_rl.trainer.run import Run
from entropy_rl.types import TrainState

_LARGE_CHECKPOINT = 10**9  # bytes; the size of larger checkpoints is logged at the start


class InStack(NamedTuple):
    """What a run shares with those that are trained together with it; it prints no progress.

    Attributes:
      stop: Where it looks for a request to stop.
      last_step: The step that all of them go on from; later checkpoints are deleted.
    """

    stop: StopRequest
    last_step: int


@contextlib.contextmanager
def open_run(
    config: TrainConfig | SFTConfig,
    start: TrainState,
    title: str,
    identity: Identity,
    stack: InStack | None = None,
) -> Iterator[tuple[Run, TrainState]]:
    """Open the run in `config.run.directory` as its only writer; create it if it does not exist.

    Args:
      config: The run's config.
      start: The state before the first step. Its arrays are deleted if a checkpoint is restored.
      title: The word for a step on the terminal.
      identity: Digests of what the run is made of.
      stack: Of a run that is trained together with others.

    Yields:
      The run, and the state of its newest checkpoint, or `start`.

    Raises:
      ValueError: If another process writes to the directory, or it holds another run.
    """
    directory = Path(config.run.directory)
    with contextlib.ExitStack() as opened:
        stop = stack.stop if stack else opened.enter_context(catch_signals())
        changed, accepted = hosts.on_first(lambda: _claim(opened, config, identity))
        checkpoints = opened.enter_context(
            Checkpoints(
                checkpoint_directory(directory, config.run.checkpoints), config.run.max_to_keep
            )
        )
        if stack:
            checkpoints.drop_after(stack.last_step)
        state = commit(start)
        if checkpoints.latest is not None:
            state = checkpoints.restore(state)
            if hosts.is_first():
                echo(
                    f"resuming {directory} after step {int(state.step)} of {config.steps}",
                    file=sys.stderr,
                )
        step = int(state.step)
        if hosts.is_first():
            size = sum(x.nbytes for x in jax.tree.leaves(state))
            if size >= _LARGE_CHECKPOINT:
                kept = f"the newest {config.run.max_to_keep} are kept"
                echo(f"checkpoints: {size / 1e9:.2f} GB each, {kept}", file=sys.stderr)
            records = RunLog(
                directory,
                step,
                build_loggers(config.run),
                to_plain(config),
                every_step=isinstance(config, TrainConfig),
            )
            record_start(directory, step, changed, accepted)
            record_identity(directory, identity)
            for what, changes in (("changed settings", changed), ("accepted changes", accepted)):
                if changes:
                    echo(f"{what}: {', '.join(changes)}", file=sys.stderr)
        else:
            records = NoLog()
        records = opened.enter_context(records)
        silent = stack is not None or not hosts.is_first()
        progress = opened.enter_context(Progress(title, config.steps, step, silent=silent))
        yield Run(config, checkpoints, records, progress, stop), state


def _claim(
    opened: contextlib.ExitStack,
    config: TrainConfig | SFTConfig,
    identity: Identity,
) -> tuple[list[str], list[str]]:
    """Lock a run until `opened` is closed.

    Returns:
      The settings that have changed since the last start, and the changes of its identity, which
      are accepted.
    """
    directory = Path(config.run.directory)
    checkpoints = checkpoint_directory(directory, config.run.checkpoints)
    if checkpoints.is_dir():
        step = newest_undamaged(checkpoints, contents=False)[0] or 0
        allowed = f">= {step}, the step of the newest checkpoint in {directory}"
        require(step <= config.steps, "steps", config.steps, allowed)
    changed = opened.enter_context(claimed_run(config))
    accepted = check_identity(directory, identity, config.run.accept_changes)
    if accepted:  # an evaluation would refuse to mix samples of other problems
        for evaluation in (directory / EVALUATIONS_DIRECTORY).glob("*/"):
            if not (evaluation / RESULT_FILE).exists():
                shutil.rmtree(evaluation)
    return changed, accepted
