"""Dynamics of a training run: its metrics, samples and evaluations over the steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from entropy_rl.analysis import Annotated, Point, dynamics, point
from entropy_rl.evaluation import read_result
from entropy_rl.evaluation.samples import has_samples
from entropy_rl.runs.directory import EVALUATIONS_DIRECTORY
from entropy_rl.runs.stored import METRICS_FILE, read_metrics

# Metrics over all responses of a step; only some of these are recorded as samples.
METRICS = ("correct", "length", "entropy", "bonus_share")

Interval = tuple[float, float, float]  # estimate, low, high


@dataclasses.dataclass(frozen=True)
class RunDynamics:
    """A training run over its steps.

    Attributes:
      metrics: The `METRICS` of each step; None for missing values.
      training: Behaviors in the recorded samples of each step.
      evaluations: Behaviors in the samples of each evaluation; all are on the same problems.
      pass_at_k: Step -> K -> Pass@K with its interval.
    """

    metrics: list[dict[str, float | None]]
    training: list[Point]
    evaluations: list[Point]
    pass_at_k: dict[int, dict[int, Interval]]


def run_dynamics(
    directory: Path,
    training: Sequence[Annotated],
    annotated: Callable[[Path], Sequence[Annotated]],
) -> RunDynamics:
    """Read the dynamics of a run.

    Args:
      directory: The run.
      training: Its recorded samples.
      annotated: Reads and annotates the samples of an evaluation.

    Raises:
      ValueError: A file of the run cannot be read.
    """
    evaluations, pass_at_k = [], {}
    found = [
        path for path in (directory / EVALUATIONS_DIRECTORY).glob("*") if path.name.isdecimal()
    ]
    for path in sorted(found, key=lambda path: int(path.name)):
        result = read_result(path)
        if result is not None:  # complete
            step = int(path.name)
            pass_at_k[step] = result.pass_at_k_of_all
            if has_samples(path):
                evaluations.append(point(step, annotated(path)))
    file = directory / METRICS_FILE
    try:
        metrics = [
            {"step": row["step"]} | {name: row.get(name) for name in METRICS}
            for row in read_metrics(file)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: must hold the metrics of a run ({error})") from error
    return RunDynamics(metrics, dynamics(training), evaluations, pass_at_k)
