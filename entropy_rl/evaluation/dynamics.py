"""A training run, step by step: its metrics, what its samples are like, and how its evaluations
went.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from entropy_rl.analysis import Annotated, Point, dynamics, point
from entropy_rl.evaluation import read_result
from entropy_rl.runs.directory import EVALUATIONS_DIRECTORY
from entropy_rl.runs.stored import METRICS_FILE, read_metrics

# Of the trainer, over all responses of a step; the samples that are recorded are a few of them.
METRICS = ("correct", "length", "entropy", "bonus_share")

Interval = tuple[float, float, float]  # estimate, low, high


@dataclasses.dataclass(frozen=True)
class RunDynamics:
    """A run over its steps.

    Attributes:
      metrics: For each step the trainer's own numbers of `METRICS`, None where there is none.
      training: The samples recorded of each step.
      evaluations: The samples of each evaluation: the same problems every time, and so what to
        compare by.
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
    """Reads how a run went.

    Args:
      directory: Of the run.
      training: Its own samples.
      annotated: Reads the samples of an evaluation.

    Raises:
      ValueError: One of its files cannot be read.
    """
    evaluations, pass_at_k = [], {}
    found = [
        path for path in (directory / EVALUATIONS_DIRECTORY).glob("*") if path.name.isdecimal()
    ]
    for path in sorted(found, key=lambda path: int(path.name)):
        result = read_result(path)
        if result is not None:  # complete
            step = int(path.name)
            pass_at_k[step] = result.pass_at_k
            evaluations.append(point(step, annotated(path)))
    file = directory / METRICS_FILE
    try:
        metrics = [
            {"step": row["step"]} | {name: row.get(name) for name in METRICS}
            for row in read_metrics(file)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: these are no metrics of a run ({error})") from error
    return RunDynamics(metrics, dynamics(training), evaluations, pass_at_k)
