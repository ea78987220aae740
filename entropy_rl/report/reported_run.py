"""A training run or an evaluation as a report reads it: nothing but what lies in its directory."""

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
from entropy_rl.runs.load_model import is_run
from entropy_rl.runs.provenance import STARTS_FILE
from entropy_rl.runs.stored import METRICS_FILE, read_metrics, read_recorded_config

_ALLOWED = "allowed: the directory of a training run, or what `evaluate` wrote"


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """One run.

    Attributes:
      name: Short, and different from those of the other runs.
      directory: Where it lies.
      is_training: Whether it is a training run; an evaluation otherwise.
      config: As stored, by names.
      metrics: Of the steps, of a training run.
      evaluations: Where the complete ones lie and what they say: by the step of a training run, or
        one at 0.
      starts: By what it was made.
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
        """The first and the last evaluation, which may be one: label -> (step, directory,
        result).
        """
        steps = sorted({min(self.evaluations), max(self.evaluations)} if self.evaluations else ())
        label = (
            (lambda step: f"{self.name}, step {step}")
            if self.is_training
            else (lambda step: self.name)
        )
        return {label(step): (step, *self.evaluations[step]) for step in steps}

    @property
    def again(self) -> str:
        """The command that makes it again, or why there is none."""
        if not self.config:
            return f"# {self.directory}: its configuration was not stored"
        run = self._run_around
        if run is not None:
            return f"# {self.directory}: the run in {run} makes it"
        rl = "train" if "advantage" in self.config else "sft"
        verb, where = (rl, "--run.directory") if self.is_training else ("evaluate", "--output")
        return shlex.join(
            ["entropy-rl", verb, "--config", str(self.directory / CONFIG_FILE), where, "NEW"]
        )

    @property
    def _run_around(self) -> Path | None:
        """The training run that an evaluation lies in."""
        run = self.directory.resolve().parent.parent
        inside = self.directory.resolve().parent.name == EVALUATIONS_DIRECTORY and is_run(run)
        return run if inside and not self.is_training else None

    @property
    def trained_by(self) -> dict[str, Any] | None:
        """The config that says how samples of the run would be learned from; None if nothing
        does.
        """
        if "advantage" in self.config:
            return self.config
        # An evaluation of a training run, inside of it or by itself.
        run = self._run_around or Path(str((self.config.get("model") or {}).get("path")))
        return read_recorded_config(run / CONFIG_FILE) if is_run(run) else None

    @property
    def method(self) -> str:
        """The chain of transforms in a line, and what else is learned from."""
        if not self.is_training:
            model = (self.config.get("model") or {}).get("path")
            return f"evaluation of {self._run_around or model or 'a model that is not named'}"
        if "advantage" not in self.config:
            return "supervised"
        loss = self.config.get("loss") or {}
        parts = [_call(spec) for spec in self.config["advantage"]]
        bonus = loss.get("entropy_coef")
        text = _call(bonus) if isinstance(bonus, dict) else f"{bonus or 0:g}"
        chain = " → ".join(parts) + (f", entropy bonus in the loss: {text}" if bonus else "")
        replay = self.config.get("replay")
        return f"{chain}, replay: {_call(replay)}" if replay else chain


def read_runs(paths: list[str]) -> list[ReportedRun]:
    """Reads runs and gives them short names.

    Raises:
      ValueError: A path holds neither, or a file in it cannot be read.
    """
    directories = [Path(path) for path in paths]
    return [
        _read(path, name) for path, name in zip(directories, short_names(directories), strict=True)
    ]


def short_names(paths: list[Path]) -> list[str]:
    """The ends of paths, as long as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(
        f"runs: {', '.join(map(str, paths))}: one is there twice; allowed: different runs"
    )


def flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(Dotted path, value) of everything that a config says; a list is one value."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _read(directory: Path, name: str) -> ReportedRun:
    if not directory.is_dir():
        raise ValueError(f"{directory}: is no directory; {_ALLOWED}")
    is_training = is_run(directory)
    evaluations = {}
    if is_training:
        for path in (directory / EVALUATIONS_DIRECTORY).glob(f"*/{RESULT_FILE}"):
            if path.parent.name.isdecimal():
                evaluations[int(path.parent.name)] = (path.parent, read_result(path.parent))
    else:
        result = read_result(directory)
        if result is None:
            what = (
                "an evaluation that is not complete"
                if (directory / CONFIG_FILE).exists()
                else "no run"
            )
            raise ValueError(f"{directory}: holds {what}; {_ALLOWED}")
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
        raise ValueError(f"{path}: these are no records of a run ({error})") from error
    return rows


def _call(spec: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in spec.items() if name != "name")
    return f"{spec['name']}({arguments})" if arguments else str(spec["name"])
