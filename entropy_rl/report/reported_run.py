"""Runs for a report, read from the files in their directories."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from entropy_rl.evaluation import Evaluation, read_result
from entropy_rl.evaluation.samples import RESULT_FILE
from entropy_rl.runs.directory import CONFIG_FILE, EVALUATIONS_DIRECTORY
from entropy_rl.runs.jsonl import read_jsonl
from entropy_rl.runs.model_files import is_run
from entropy_rl.runs.provenance import STARTS_FILE
from entropy_rl.runs.stored import METRICS_FILE, read_metrics, read_recorded_config

_MUST_BE = "must be the directory of a training run or an evaluation"


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """A training run or an evaluation.

    Attributes:
      name: Short name, unique among the runs of the report.
      directory: Its directory.
      is_training: Whether it is a training run; otherwise it is an evaluation.
      config: The stored config, as plain values.
      metrics: Metrics of each step of a training run.
      evaluations: Step -> directory and result of the complete evaluations; step 0 for an
        evaluation by itself.
      starts: Command, commit, versions and devices of each start.
    """

    name: str
    directory: Path
    is_training: bool
    config: dict[str, Any]
    metrics: list[dict[str, float | None]]
    evaluations: dict[int, tuple[Path, Evaluation]]
    starts: list[dict[str, Any]]

    @property
    def first_and_last(self) -> dict[str, tuple[int, Path, Evaluation]]:
        """The first and last evaluation, which may be the same: label -> (step, path, result)."""
        steps = sorted({min(self.evaluations), max(self.evaluations)} if self.evaluations else ())
        return {
            f"{self.name}, step {step}" if self.is_training else self.name: (
                step,
                *self.evaluations[step],
            )
            for step in steps
        }

    @property
    def again(self) -> str:
        """The command that repeats the run, or a comment with the reason why there is none."""
        if not self.config:
            return f"# {self.directory}: has no stored config"
        run = self._run_around
        if run is not None:
            return f"# {self.directory}: made by the run in {run}"
        train = "train" if "advantage" in self.config else "sft"
        verb, where = (train, "--run.directory") if self.is_training else ("evaluate", "--output")
        return shlex.join(
            ["entropy-rl", verb, "--config", str(self.directory / CONFIG_FILE), where, "NEW"]
        )

    @property
    def _run_around(self) -> Path | None:
        """The training run that this evaluation belongs to, or None."""
        run = self.directory.resolve().parent.parent
        inside = self.directory.resolve().parent.name == EVALUATIONS_DIRECTORY and is_run(run)
        return run if inside and not self.is_training else None

    @property
    def trained_by(self) -> dict[str, Any] | None:
        """The run's training config, or None."""
        if "advantage" in self.config:
            return self.config
        # An evaluation inside of a training run, or one whose model is a training run.
        run = self._run_around or Path(str((self.config.get("model") or {}).get("path")))
        return read_recorded_config(run / CONFIG_FILE) if is_run(run) else None

    @property
    def method(self) -> str:
        """One line: the chain of advantage transforms, the entropy bonus and replay."""
        if not self.is_training:
            model = (self.config.get("model") or {}).get("path")
            return f"evaluation of {self._run_around or model or 'an unnamed model'}"
        if "advantage" not in self.config:
            return "supervised"
        loss = self.config.get("loss") or {}
        parts = [_call(spec) for spec in self.config["advantage"] or []]
        bonus = loss.get("entropy_coef")
        text = _call(bonus) if isinstance(bonus, dict) else f"{bonus or 0:g}"
        chain = " → ".join(parts) or "no policy gradient"
        chain += f", entropy bonus in the loss: {text}" if bonus else ""
        teacher = self.config.get("teacher") or {}
        if teacher.get("top_k"):
            chain += f", KL to {teacher['path']} in the loss: {teacher.get('coef', 1):g}"
        replay = self.config.get("replay")
        return f"{chain}, replay: {_call(replay)}" if replay else chain


def read_runs(paths: list[str]) -> list[ReportedRun]:
    """Read runs and give them short names.

    Raises:
      ValueError: A path is not a run or an evaluation, or a file in it cannot be read.
    """
    directories = [Path(path) for path in paths]
    return [
        _read(path, name) for path, name in zip(directories, short_names(directories), strict=True)
    ]


def short_names(paths: list[Path]) -> list[str]:
    """The shortest suffixes of paths that are unique."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"runs: must be different directories, got {', '.join(map(str, paths))}")


def flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(Dotted path, value) of all fields of a config; a list is one value."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _read(directory: Path, name: str) -> ReportedRun:
    if not directory.is_dir():
        raise ValueError(f"{directory}: {_MUST_BE}, got no directory")
    is_training = is_run(directory)
    evaluations = {}
    if is_training:
        for path in (directory / EVALUATIONS_DIRECTORY).glob(f"*/{RESULT_FILE}"):
            if path.parent.name.isdecimal():
                evaluations[int(path.parent.name)] = (path.parent, read_result(path.parent))
    else:
        result = read_result(directory)
        if result is None:
            what = "an incomplete evaluation" if (directory / CONFIG_FILE).exists() else "neither"
            raise ValueError(f"{directory}: {_MUST_BE}, got {what}")
        evaluations[0] = (directory, result)
    return ReportedRun(
        name=name,
        directory=directory,
        is_training=is_training,
        config=read_recorded_config(directory / CONFIG_FILE),
        metrics=_read_lines(directory / METRICS_FILE, "step", read_metrics) if is_training else [],
        evaluations=evaluations,
        starts=_read_lines(directory / STARTS_FILE, "command", read_jsonl),
    )


def _read_lines(
    path: Path, needed: str, read: Callable[[Path], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    try:
        rows = read(path)
        for row in rows:
            row[needed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: must hold the records of a run ({error})") from error
    return rows


def _call(spec: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in spec.items() if name != "name")
    return f"{spec['name']}({arguments})" if arguments else str(spec["name"])
