"""Compute the result of an evaluation from its samples."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from entropy_rl.experience.prompts import Prompts
from entropy_rl.experience.records import grades_of
from entropy_rl.experience.scoring import add_probes, probe_of, probe_shares, verdict_shares
from entropy_rl.runs.jsonl import finite
from entropy_rl.stats.diversity import (
    distinct_ngrams,
    majority_vote,
    repetition_rate,
    unique_answers,
)
from entropy_rl.stats.pass_at_k import bootstrap_interval, pass_at_k_curve, wilson_interval
from entropy_rl.tasks.task import AnsweringTask, JudgeError, ProbedTask, Problem, Task, Verdict

Interval = tuple[float, float, float]  # estimate, low, high

DISTINCT = (1, 2, 3)  # the n of distinct-n
REPETITION = 4  # the n of the repetition rate
_PROBED_AT_ONCE = 256
_fraction_interval = partial(bootstrap_interval, is_fraction=True)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, with 95% intervals over problems.

    Intervals are those of `wilson_interval` for rates of success (Pass@K, avg@n, maj@n) and of
    `bootstrap_interval` for the others; those of one problem, and those of lengths, entropies and
    grades that are equal on all problems, are unbounded, null in JSON.

    Attributes:
      problems: Number of sampled problems.
      left_out: Problems whose prompt is too long.
      samples: Samples per problem (n).
      pass_at_k: K -> (estimate, low, high), unbiased; over the problems with K or more judged
        samples.
      pass_at_k_problems: K -> number of these problems.
      unjudged: Problems without any judged sample.
      avg_at_n: (estimate, low, high) of the accuracy over a problem's judged samples.
      maj_at_n: Whether the most frequent answer of a problem is correct; None for a task without
        answers.
      unique_answers: Distinct answers over samples with an answer, per problem; None as above.
      distinct: n -> distinct n-grams over all n-grams of a problem's samples. It decreases with the
        number of samples; compare only evaluations with the same number.
      repetition: Fraction of the 4-grams of a completion that occurred in it before.
      mean_length: Tokens per completion.
      mean_entropy: Nats per token, of the distribution at the sampling temperature; at temperature
        0, of that at temperature 1.
      truncated: Fraction of completions cut off at the token limit.
      verdicts: Verdict -> fraction of the samples.
      skill: Measures of the task.
      grades: Means over the samples that have them: the task's grade, as `graded`, and its parts.
      by_source: Source of a mixture -> K -> (estimate, low, high), as `pass_at_k`.
      by_source_problems: Source -> K -> number of its problems with K or more judged samples;
        empty in results of earlier versions.
      answered: Fraction of the samples with an answer, which alone have a vote in `maj_at_n`; None
        for a task without answers and in results of earlier versions.
      answered_problems: Number of problems with such a sample, those of `unique_answers`; None as
        above.
    """

    problems: int
    left_out: int
    samples: int
    pass_at_k: dict[int, Interval]
    pass_at_k_problems: dict[int, int]
    unjudged: int
    avg_at_n: Interval
    maj_at_n: Interval | None
    unique_answers: Interval | None
    distinct: dict[int, Interval | None]
    repetition: Interval
    mean_length: Interval
    mean_entropy: Interval
    truncated: float
    verdicts: dict[str, float]
    skill: dict[str, float]
    grades: dict[str, Interval] = dataclasses.field(default_factory=dict)
    by_source: dict[str, dict[int, Interval]] = dataclasses.field(default_factory=dict)
    by_source_problems: dict[str, dict[int, int]] = dataclasses.field(default_factory=dict)
    answered: float | None = None
    answered_problems: int | None = None

    @property
    def pass_at_k_of_all(self) -> dict[int, Interval]:
        """`pass_at_k` at those K for which no judged problem has too few samples."""
        counts = self.pass_at_k_problems
        return {k: v for k, v in self.pass_at_k.items() if counts[k] == counts[min(counts)]}

    def to_plain(self) -> dict[str, Any]:
        """Values for JSON; null stands for an unbounded interval end."""
        return finite(dataclasses.asdict(self))

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Evaluation:
        """Restore a result from JSON, which turns keys into strings and tuples into lists."""

        def restored(value: Any) -> Any:
            if not isinstance(value, list):
                return value
            estimate, low, high = value
            return estimate, -math.inf if low is None else low, math.inf if high is None else high

        fields = {name: restored(value) for name, value in plain.items()}
        for name in ("pass_at_k", "pass_at_k_problems", "distinct"):
            fields[name] = {int(k): restored(value) for k, value in fields[name].items()}
        fields["grades"] = {k: restored(v) for k, v in fields.get("grades", {}).items()}
        fields["by_source"] = {
            source: {int(k): restored(value) for k, value in curve.items()}
            for source, curve in fields.get("by_source", {}).items()
        }
        fields["by_source_problems"] = {
            source: {int(k): count for k, count in counts.items()}
            for source, counts in fields.get("by_source_problems", {}).items()
        }
        return cls(**fields)


def summarize(
    rows: Iterable[dict[str, Any]], task: Task, prompts: Prompts, samples: int
) -> Evaluation:
    """Compute the result of an evaluation.

    Args:
      rows: All samples, from `completion_rows`, in any order. The tokens of a problem are kept in
        memory until its last sample.
      task: The task of the problems.
      prompts: The problems.
      samples: Samples per problem.

    Returns:
      The result.

    Raises:
      JudgeError: No sample was judged.
    """
    tallies = {problem.id: _Tally(samples) for problem in prompts.problems}
    probe = _Probe(task, prompts.problems)
    verdicts = Counter()
    for row in rows:
        tallies[row["problem"]].add(row)
        probe.add(row)
        verdicts[Verdict(row["verdict"])] += 1
    # In the order of the problems, not of the samples: float sums depend on the order.
    done = [tally for tally in tallies.values() if tally.rows]
    judged = np.array([tally.judged for tally in done])
    correct = np.array([tally.correct for tally in done])
    if judged.max() == 0:
        raise JudgeError(
            f"none of {verdicts.total()} samples was judged: every check timed out, crashed or "
            "did not judge"
        )
    pass_at_k = _pass_at_k(judged, correct)
    sources = {problem.id: problem.source for problem in prompts.problems}
    source_of = np.array([sources[id] for id, tally in tallies.items() if tally.rows])
    members = {name: source_of == name for name in sorted(set(source_of) - {""})}
    by_source = {name: _pass_at_k(judged[of], correct[of]) for name, of in members.items()}
    answers = isinstance(task, AnsweringTask)
    grades = dict.fromkeys(name for tally in done for name in tally.grades)
    return Evaluation(
        problems=len(done),
        left_out=prompts.left_out,
        samples=samples,
        pass_at_k=pass_at_k,
        pass_at_k_problems=_counts(judged, pass_at_k),
        unjudged=int((judged == 0).sum()),
        avg_at_n=_interval(correct[judged > 0] / judged[judged > 0], wilson_interval),
        maj_at_n=_interval([tally.majority for tally in done if tally.judged], wilson_interval)
        if answers
        else None,
        unique_answers=_interval([tally.unique for tally in done], _fraction_interval)
        if answers
        else None,
        distinct={
            n: _interval([tally.distinct[n] for tally in done], _fraction_interval)
            for n in DISTINCT
        },
        repetition=_interval([tally.repetition / tally.rows for tally in done], _fraction_interval),
        mean_length=_interval([tally.tokens / tally.rows for tally in done]),
        mean_entropy=_interval([tally.entropy / tally.tokens for tally in done]),
        truncated=sum(tally.truncated for tally in done) / verdicts.total(),
        verdicts=verdict_shares(verdicts),
        skill={n.removeprefix("skill/"): v for n, v in probe_shares(probe.result()).items()},
        grades={name: _interval([tally.mean_grade(name) for tally in done]) for name in grades},
        by_source=by_source,
        by_source_problems={
            name: _counts(judged[of], by_source[name]) for name, of in members.items()
        },
        answered=sum(tally.answered for tally in done) / verdicts.total() if answers else None,
        answered_problems=sum(tally.answered > 0 for tally in done) if answers else None,
    )


def _pass_at_k(judged: np.ndarray, correct: np.ndarray) -> dict[int, Interval]:
    """Pass@K for each power of two, over the problems with at least K judged samples."""
    found = {}
    for k in (2**i for i in range(int(judged.max()).bit_length())):
        curve = pass_at_k_curve(judged[judged >= k], correct[judged >= k], [k])
        found[k] = (float(curve.estimate[0]), float(curve.low[0]), float(curve.high[0]))
    return found


def _counts(judged: np.ndarray, ks: Iterable[int]) -> dict[int, int]:
    """K -> number of problems with at least K judged samples."""
    return {k: int((judged >= k).sum()) for k in ks}


class _Tally:
    """Running tally of the samples of one problem."""

    def __init__(self, samples: int):
        self._samples = samples
        self.rows = self.judged = self.correct = self.tokens = self.truncated = self.answered = 0
        self.entropy = self.repetition = 0.0
        self.majority = self.unique = float("nan")
        self.distinct: dict[int, float] = {}
        self.grades: dict[str, dict[int, float]] = {}  # by name and sample number
        # By sample number: (answer, is correct, is judged), and the tokens.
        self._answers: dict[int, tuple[str | None, bool, bool]] = {}
        self._tokens: dict[int, np.ndarray] = {}

    def add(self, row: dict[str, Any]) -> None:
        verdict = Verdict(row["verdict"])
        tokens = np.array(row["tokens"], np.int64)
        self.rows += 1
        self.judged += verdict.is_judgement
        self.correct += verdict is Verdict.CORRECT
        self.tokens += tokens.size
        self.truncated += row["finish_reason"] == "length"
        self.answered += row["answer"] is not None
        self.entropy += sum(row["entropy"])
        self.repetition += repetition_rate(tokens, REPETITION)
        self._answers[row["sample"]] = (
            row["answer"],
            verdict is Verdict.CORRECT,
            verdict.is_judgement,
        )
        self._tokens[row["sample"]] = tokens
        for name, grade in grades_of(row).items():
            self.grades.setdefault(name, {})[row["sample"]] = grade
        if self.rows == self._samples:
            self._close()

    def mean_grade(self, name: str) -> float:
        """Mean over the samples that have it, in their order; NaN if there are none."""
        grades = self.grades.get(name, {})
        return float(np.mean([grades[i] for i in sorted(grades)])) if grades else float("nan")

    def _close(self) -> None:
        judged = [(answer, correct) for answer, correct, judged in self._answers.values() if judged]
        self.unique = unique_answers([answer for answer, _, _ in self._answers.values()])
        if judged:
            self.majority = majority_vote(
                [a for a, _ in judged], np.array([c for _, c in judged], bool)
            )
        rows = list(self._tokens.values())
        self.distinct = {n: distinct_ngrams(rows, n) for n in DISTINCT}
        self._answers, self._tokens = {}, {}


class _Probe:
    """The skill measures of a task, computed for batches of samples and pooled."""

    def __init__(self, task: Task, problems: Sequence[Problem]):
        self._task = task if isinstance(task, ProbedTask) else None
        self._problems = {problem.id: problem for problem in problems}
        self._waiting: list[tuple[Problem, str]] = []
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, row: dict[str, Any]) -> None:
        if self._task is not None:
            self._waiting.append((self._problems[row["problem"]], row["completion"]))
            if len(self._waiting) == _PROBED_AT_ONCE:
                self._flush()

    def result(self) -> dict[str, tuple[float, float]]:
        self._flush()
        return self._sums

    def _flush(self) -> None:
        if self._waiting:
            problems, texts = map(list, zip(*self._waiting, strict=True))
            self._sums = add_probes(self._sums, probe_of(self._task, problems, texts))
            self._waiting = []


def _interval(
    values: Iterable[float], method: Callable[..., tuple] = bootstrap_interval
) -> Interval | None:
    """The interval over problems with a value; None if there are none."""
    values = np.asarray(list(values), np.float64)
    values = values[~np.isnan(values)]
    return tuple(float(x) for x in method(values)) if values.size else None
