"""Records of a study: the progress of each unit, and its tallies by problem."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from entropy_rl.config.files import error_text
from entropy_rl.config.study import pass_at
from entropy_rl.evaluation import read_samples
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.stats.pass_at_k import pass_at_k
from entropy_rl.studies.grid import Design, Unit
from entropy_rl.tasks.task import Verdict

_RECORD_FILE = "record.json"
_PROBLEMS_FILE = "problems.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """Progress of a unit.

    Attributes:
      done: Its complete phases.
      seconds: Phase -> seconds spent in it, over all starts that were not killed.
      machine: Where the last start ran.
      failed: Why the last start of a phase failed; None if it did not.
    """

    done: tuple[str, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    machine: str = ""
    failed: str | None = None

    @property
    def total_seconds(self) -> float:
        """Seconds spent in all phases."""
        return sum(self.seconds.values())

    def after(
        self, phase: str, seconds: float, machine: str, failed: str | None, done: bool
    ) -> Record:
        """The record after one more start of a phase."""
        spent = dict(self.seconds) | {phase: self.seconds.get(phase, 0.0) + seconds}
        return Record((*self.done, phase) if done else self.done, spent, machine, failed)


def read_record(directory: Path) -> Record:
    """Read the record of a unit; an empty one if nothing was run yet.

    Raises:
      ValueError: The file is not a record.
    """
    path = directory / _RECORD_FILE
    if not path.exists():
        return Record()
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Record(**plain | {"done": tuple(plain["done"])})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: must be the record of a unit ({error_text(error)})") from error


def write_record(directory: Path, record: Record) -> None:
    """Write the record of a unit."""
    write_atomically(
        directory / _RECORD_FILE, json.dumps(dataclasses.asdict(record), indent=1) + "\n"
    )


def read_records(design: Design) -> dict[Unit, Record]:
    """Read the records of all units."""
    return {unit: read_record(design.directory_of(unit)) for unit in design.units()}


def is_complete(unit: Unit, record: Record) -> bool:
    """Whether all phases of a unit are done."""
    return set(unit.phases) <= set(record.done)


def incomplete(records: Mapping[Unit, Record], only: Sequence[str] = ()) -> dict[Unit, Record]:
    """Select the units that are not complete.

    Args:
      records: Unit -> its progress.
      only: Arms to select from; empty for all.
    """
    return {
        unit: record
        for unit, record in records.items()
        if not is_complete(unit, record) and (not only or unit.arm in only)
    }


@dataclasses.dataclass
class ProblemTally:
    """Counts over all samples of a problem.

    Attributes:
      samples: Number of samples.
      judged: Samples with a verdict.
      correct: Correct samples.
      truncated: Samples cut off at the token limit.
      tokens: Tokens of all samples.
      entropy: Sum of the token entropies, nats.
      lengths: Tokens of each judged sample; empty in records of earlier versions.
      is_correct: 1 for each of these that is correct, and 0.
    """

    samples: int = 0
    judged: int = 0
    correct: int = 0
    truncated: int = 0
    tokens: int = 0
    entropy: float = 0.0
    lengths: list[int] = dataclasses.field(default_factory=list)
    is_correct: list[int] = dataclasses.field(default_factory=list)

    def endpoint(self, name: str) -> float:
        """Value of an endpoint of a hypothesis; NaN if there are too few judged samples."""
        k = pass_at(name)
        if k is not None:
            return float(pass_at_k(self.judged, self.correct, k)) if k <= self.judged else math.nan
        return {
            "length": self.tokens / self.samples,
            "entropy": self.entropy / self.tokens,
            "truncated": self.truncated / self.samples,
        }[name]


def write_problems(directory: Path, evaluation: Path) -> None:
    """Tally the samples of an evaluation by problem; reports read the tallies, not the samples."""
    tallies: dict[int, ProblemTally] = {}
    judged: dict[int, list[tuple[int, int, bool]]] = {}
    for row in read_samples(evaluation):
        verdict, tokens = Verdict(row["verdict"]), len(row["tokens"])
        correct = verdict is Verdict.CORRECT
        tally = tallies.setdefault(row["problem"], ProblemTally())
        tally.samples += 1
        tally.judged += verdict.is_judgement
        tally.correct += correct
        tally.truncated += row["finish_reason"] == "length"
        tally.tokens += tokens
        tally.entropy += sum(row["entropy"])
        if verdict.is_judgement:
            judged.setdefault(row["problem"], []).append((row["sample"], tokens, correct))
    for problem, samples in judged.items():
        for _, tokens, correct in sorted(samples):
            tallies[problem].lengths.append(tokens)
            tallies[problem].is_correct.append(int(correct))
    plain = {problem: dataclasses.asdict(tally) for problem, tally in sorted(tallies.items())}
    write_atomically(directory / _PROBLEMS_FILE, json.dumps(plain) + "\n")


def read_problems(directory: Path) -> dict[int, ProblemTally]:
    """Read what `write_problems` wrote: problem id -> tally.

    Raises:
      ValueError: The file is something else.
    """
    path = directory / _PROBLEMS_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return {int(problem): ProblemTally(**tally) for problem, tally in plain.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: must be tallies of problems ({error_text(error)})") from error
