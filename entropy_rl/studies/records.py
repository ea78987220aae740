"""What a study keeps of a unit: how far it is, what it took, and its measures, problem by
problem.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from entropy_rl.config.study import pass_at
from entropy_rl.evaluation import read_samples
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.stats.pass_at_k import pass_at_k
from entropy_rl.tasks.task import Verdict

_RECORD_FILE = "record.json"
_PROBLEMS_FILE = "problems.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """How far a unit is.

    Attributes:
      done: Its phases that are complete.
      seconds: Phase -> seconds that it took, all its starts that ended by themselves or were asked
        to.
      machine: Where the last of them ran.
      failed: Why the last start of a phase failed; None if it did not.
    """

    done: tuple[str, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    machine: str = ""
    failed: str | None = None

    def after(
        self, phase: str, seconds: float, machine: str, failed: str | None, done: bool
    ) -> Record:
        """The record after a start of a phase."""
        spent = dict(self.seconds) | {phase: self.seconds.get(phase, 0.0) + seconds}
        return Record((*self.done, phase) if done else self.done, spent, machine, failed)


def read_record(directory: Path) -> Record:
    """The record of a unit; an empty one where nothing was done yet."""
    path = directory / _RECORD_FILE
    if not path.exists():
        return Record()
    try:
        plain = json.loads(path.read_text())
        return Record(**plain | {"done": tuple(plain["done"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: this is no record of a study ({error})") from error


def write_record(directory: Path, record: Record) -> None:
    """Writes it."""
    write_atomically(
        directory / _RECORD_FILE, json.dumps(dataclasses.asdict(record), indent=1) + "\n"
    )


@dataclasses.dataclass
class ProblemTally:
    """All samples of a problem: how many there are, were judged, correct, cut off; their tokens
    and nats.
    """

    samples: int = 0
    judged: int = 0
    correct: int = 0
    truncated: int = 0
    tokens: int = 0
    entropy: float = 0.0

    def endpoint(self, name: str) -> float:
        """An endpoint of a hypothesis; NaN where there are too few judged samples for it."""
        k = pass_at(name)
        if k is not None:
            return float(pass_at_k(self.judged, self.correct, k)) if k <= self.judged else math.nan
        return {
            "length": self.tokens / self.samples,
            "entropy": self.entropy / self.tokens,
            "truncated": self.truncated / self.samples,
        }[name]


def write_problems(directory: Path, evaluation: Path) -> None:
    """Sums up the samples of an evaluation, which are far too many to be read for every report."""
    tallies: dict[int, ProblemTally] = {}
    for row in read_samples(evaluation):
        tally = tallies.setdefault(row["problem"], ProblemTally())
        tally.samples += 1
        tally.judged += Verdict(row["verdict"]).is_judgement
        tally.correct += Verdict(row["verdict"]) is Verdict.CORRECT
        tally.truncated += row["finish_reason"] == "length"
        tally.tokens += len(row["tokens"])
        tally.entropy += sum(row["entropy"])
    plain = {problem: dataclasses.asdict(tally) for problem, tally in sorted(tallies.items())}
    write_atomically(directory / _PROBLEMS_FILE, json.dumps(plain) + "\n")


def read_problems(directory: Path) -> dict[int, ProblemTally]:
    """Problem -> what `write_problems` summed up."""
    plain = json.loads((directory / _PROBLEMS_FILE).read_text())
    return {int(problem): ProblemTally(**tally) for problem, tally in plain.items()}
