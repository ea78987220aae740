"""Where the metrics of a run go beside metrics.jsonl: TensorBoard, W&B, Trackio, MLflow, your own.

An entry of `run.loggers` names a function of its arguments that returns a `StartLogger`. All but
TensorBoard are optional packages, which are imported when a config names them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from entropy_rl.config.common import RunConfig
from entropy_rl.config.extras import install_command
from entropy_rl.config.files import error_text
from entropy_rl.config.registry import call_factory, import_object, type_hints
from entropy_rl.config.values import unknown
from entropy_rl.runs.jsonl import naming

log = logging.getLogger(__name__)


class Logger(Protocol):
    """Takes the metrics of a run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one step; a resumed run repeats those after its checkpoint."""

    def close(self) -> None:
        """End the record, at the end of a run and when it is stopped."""


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """The run that a logger records, passed when it starts or resumes.

    Attributes:
      directory: The run's directory.
      last_step: The step that it resumes from; 0 at its start.
      config: Its config, as plain values.
    """

    directory: Path
    last_step: int
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The last part of the directory."""
        return self.directory.resolve().name

    @property
    def id(self) -> str:
        """Differs between directories, and is the same when a run resumes."""
        path = self.directory.resolve()
        # A hash of the whole path, because a/seed_0 and b/seed_0 are different runs.
        return f"{path.name}-{zlib.crc32(str(path).encode()):08x}"


StartLogger = Callable[[LoggedRun], Logger]


def build_loggers(run: RunConfig) -> list[StartLogger]:
    """Return the loggers of a run, to be started with it.

    Args:
      run: The section `run`.

    Raises:
      ValueError: An entry is wrong, or its package is not installed; begins with its dotted path.
    """
    found = [_build(f"run.loggers[{i}]", spec) for i, spec in enumerate(run.loggers)]
    if run.wandb_project is not None:
        spec = {"name": "wandb", "project": run.wandb_project}
        found.append(_build("run.wandb_project", spec, otherwise="set null"))
    return found


def argument_types(name: str) -> dict[str, Any]:
    """Return the annotations of a logger's arguments by name; empty if there is no such logger."""
    return type_hints(_LOGGERS[name]) if name in list(_LOGGERS) else {}


def _build(path: str, spec: Mapping[str, Any], otherwise: str = "leave it out") -> StartLogger:
    name = spec.get("name")
    arguments = {key: value for key, value in spec.items() if key != "name"}
    is_own = isinstance(name, str) and ":" in name
    if not is_own and name not in list(_LOGGERS):
        raise ValueError(unknown(f"{path}.name", name, [*_LOGGERS, "module:function"]))
    factory = import_object(f"{path}.name", name) if is_own else _LOGGERS[name]
    try:
        start = call_factory(factory, arguments, path)
    except ModuleNotFoundError as error:
        remedy = f"install it for {name}" if is_own else f"`{install_command(name)}`"
        raise ValueError(
            f"{path}: {error.name} is not installed; {remedy}, or {otherwise}"
        ) from None
    if not callable(start):
        raise ValueError(f"{path}.name: must return a function of a LoggedRun, got {start!r:.80}")

    def start_named(run: LoggedRun) -> Logger:
        try:
            logger = start(run)
        except Exception as error:
            raise ValueError(f"{path}: {error_text(error)}") from error
        if not all(callable(getattr(logger, name, None)) for name in ("metrics", "close")):
            raise ValueError(
                f"{path}: must start a logger with methods metrics and close, got {logger!r:.80}"
            )
        return logger

    return start_named


class Loggers:
    """The started loggers of a run.

    An error of one of them, such as a server that is gone, ends neither the run nor the others: a
    warning names it, and it gets no more metrics.

    Args:
      start: Those of `build_loggers`.
      run: The run.

    Raises:
      ValueError: One cannot be started; begins with its dotted path.
    """

    def __init__(self, start: Sequence[StartLogger], run: LoggedRun):
        self._loggers: list[Logger] = []
        for each in start:
            try:
                self._loggers.append(each(run))
            except ValueError:
                self.close()
                raise

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one step."""
        for logger in list(self._loggers):
            with self._dropped_on_error(logger, step):
                logger.metrics(step, values)

    def close(self) -> None:
        """Close all."""
        for logger in list(self._loggers):
            with self._dropped_on_error(logger, None):
                logger.close()

    @contextlib.contextmanager
    def _dropped_on_error(self, logger: Logger, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(logger, _TensorBoard):  # the disk of the run itself
                raise
            self._loggers.remove(logger)
            at = "at the end" if step is None else f"from step {step} on"
            log.warning(
                "%s: %s; it gets no metrics %s, metrics.jsonl has all",
                type(logger).__name__.strip("_"), f"{error!r:.200}", at,
            )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# The loggers that a config can name
# --------------------------------------------------------------------------------------------------


def tensorboard() -> StartLogger:
    """TensorBoard event files in `tensorboard/` of the run."""
    return lambda run: _TensorBoard(run.directory / "tensorboard", run.last_step + 1)


def wandb(project: str) -> StartLogger:
    """Weights & Biases; `WANDB_MODE=offline` works without network.

    Args:
      project: The project.
    """
    import wandb

    return lambda run: _Wandb(
        wandb.init(
            project=project, dir=str(run.directory), id=run.id, name=run.name, resume="allow",
            config=dict(run.config),
        )
    )  # fmt: skip


def trackio(project: str, space: str | None = None) -> StartLogger:
    """Trackio: a local dashboard, `trackio show`, or one in a space of the Hugging Face hub.

    Args:
      project: The project.
      space: NAMESPACE/NAME of the space; null for this machine.
    """
    import trackio

    return lambda run: _Wandb(
        trackio.init(
            project=project, name=run.id, space_id=space, resume="allow", config=dict(run.config)
        )
    )


def mlflow(experiment: str, tracking_uri: str | None = None) -> StartLogger:
    """MLflow.

    Args:
      experiment: Name of the experiment.
      tracking_uri: Of the server or the store; null for MLFLOW_TRACKING_URI, or what is mlflow's
        default without it.
    """
    from mlflow import MlflowClient

    return lambda run: _MLflow(MlflowClient(tracking_uri), run, experiment)


_LOGGERS: Mapping[str, Callable[..., StartLogger]] = MappingProxyType(
    {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": mlflow}
)


class _TensorBoard:
    """Synchronous writer of TensorBoard event files.

    The usual SummaryWriter hands events to a thread. If that thread cannot write any more, as on a
    full disk, it dies, and the run waits for it forever.

    Args:
      directory: Directory of the event files; created if it does not exist.
      first_step: TensorBoard discards events of earlier files from this step on.
    """

    def __init__(self, directory: Path, first_step: int):
        # slow to import, and needed by runs only
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._event = Event
        self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        event = self._event(step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._write(event)

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with naming(self._directory):
            self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # everything is flushed, or its error was reported
            self._writer.close()


class _Wandb:
    """W&B, or Trackio, whose runs have the same methods.

    Args:
      run: What `init` returns.
    """

    def __init__(self, run: Any):
        self._run = run

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, found again by a tag when a run resumes.

    Args:
      client: The `MlflowClient`.
      run: The run.
      experiment: Name of the experiment; made if there is none.
    """

    _TAG = "entropy_rl.run"

    def __init__(self, client: Any, run: LoggedRun, experiment: str):
        from mlflow.entities import Metric

        self._client, self._metric = client, Metric
        found = self._client.get_experiment_by_name(experiment)
        place = self._client.create_experiment(experiment) if found is None else found.experiment_id
        known = self._client.search_runs([place], f"tags.`{self._TAG}` = '{run.id}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            new = self._client.create_run(place, tags={self._TAG: run.id}, run_name=run.name)
            self._id = new.info.run_id
            for name, value in run.config.items():  # a section each; mlflow takes 6000 characters
                self._client.log_param(self._id, name, str(value)[:6000])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w./ -]", "_", name): value for name, value in values.items()}
        finite = {name: value for name, value in named.items() if math.isfinite(value)}
        batch = [self._metric(name, float(value), now, step) for name, value in finite.items()]
        self._client.log_batch(self._id, metrics=batch)

    def close(self) -> None:
        self._client.set_terminated(self._id)
