"""Compare two evaluations: paired tests of Pass@K, with controls for length and accuracy."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.evaluation.result import Evaluation
from entropy_rl.evaluation.samples import RESULT_FILE, read_result, read_samples_once
from entropy_rl.experience.records import grades_of
from entropy_rl.runs.directory import CONFIG_FILE, EVALUATIONS_DIRECTORY
from entropy_rl.runs.jsonl import finite
from entropy_rl.runs.logging import track
from entropy_rl.runs.stored import read_recorded_config
from entropy_rl.stats.bootstrap import holm, paired_bootstrap, sign_flip_p_value
from entropy_rl.stats.matched import (
    ProblemSamples,
    diversity_at_equal_accuracy,
    pass_at_budget,
    pass_at_k_at_equal_length,
)
from entropy_rl.stats.pass_at_k import pass_at_k, wilson_interval
from entropy_rl.tasks.task import Verdict

LEVEL = 0.05  # significance level for adjusted p-values

Curve = dict[int, tuple[float, float, float, int]]  # K -> (Pass@K, low, high, problems)


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """One measure of both runs, over the problems that have it in both.

    Attributes:
      name: Name of the measure, such as "Pass@8".
      problems: Number of problems.
      a: Mean of run A.
      b: Mean of run B.
      difference: b - a, with the 95% interval `low` to `high` of the paired bootstrap over
        problems.
      low: See `difference`.
      high: See `difference`.
      p_value: Two-sided p-value of "no difference" by the sign-flip test over problems. At the
        margin it may disagree with the interval.
      p_adjusted: p-value after Holm's correction over the rows of the table.
    """

    name: str
    problems: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float

    @property
    def is_significant(self) -> bool:
        """Whether the adjusted p-value is at most `LEVEL`."""
        return self.p_adjusted <= LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of two evaluations, A and B.

    Attributes:
      problems: Problems with a judged sample in both; all tables are over these.
      only_in_one: Problems that are missing in one of the evaluations.
      not_judged: Problems of both without a judged sample in one of them.
      unjudged_samples: Samples without a verdict, in A and in B.
      settings: Differences of the evaluation settings, one line each.
      curves: Pass@K curves of A and B over the same problems.
      pass_at_k: Pass@K.
      equal_budget: Pass@K at equal budgets of K times the mean length of both runs, in tokens.
      equal_length: Pass@K at equal length; empty if no problem has samples of equal length.
      diversity: Unique answers and distinct-n over equally many correct and wrong samples; empty if
        there are none.
      grades: Mean grade of the task (`graded`) and means of its parts; empty if it gives none.
    """

    problems: int
    only_in_one: int
    not_judged: int
    unjudged_samples: tuple[int, int]
    settings: list[str]
    curves: tuple[Curve, Curve]
    pass_at_k: list[ComparisonRow]
    equal_budget: list[ComparisonRow]
    equal_length: list[ComparisonRow]
    diversity: list[ComparisonRow]
    grades: list[ComparisonRow]

    def to_plain(self) -> dict[str, Any]:
        """Values for JSON; null stands for an unbounded interval end."""
        return finite(dataclasses.asdict(self))


def find_evaluation(path: Path) -> Path:
    """Find the directory of an evaluation: `path`, or the last evaluation of a training run.

    Raises:
      ValueError: There is no complete evaluation.
    """
    if (path / RESULT_FILE).is_file():
        return path
    inside = [found.parent for found in (path / EVALUATIONS_DIRECTORY).glob(f"*/{RESULT_FILE}")]
    steps = [directory for directory in inside if directory.name.isdecimal()]
    if steps:
        return max(steps, key=lambda directory: int(directory.name))
    got = "no complete evaluation" if path.is_dir() else "no directory"
    raise ValueError(
        f"{path}: must be the directory of an evaluation or of a run with evaluations, got {got}"
    )


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare two evaluations of the same problems.

    Args:
      a: Directory of the baseline.
      b: Directory of the evaluation to compare with it.

    Returns:
      The comparison. Samples without a verdict are left out.

    Raises:
      ValueError: They are not evaluations of the same problems, or their samples are missing.
    """
    one, other = _read(a), _read(b)
    for problem in one.problems.keys() & other.problems.keys():
        if one.problems[problem] != other.problems[problem]:
            raise ValueError(
                f"{a} and {b}: must be evaluations of the same problems, got different prompts or "
                f"answers for problem {problem}"
            )
    both = [problem for problem in one.judged if problem in other.judged]
    if not both:
        raise ValueError(
            f"{a} and {b}: must have judged samples of the same problems, got no common problem"
        )
    pairs = [(one.judged[problem], other.judged[problem]) for problem in both]
    samples = max(min(len(x.correct), len(y.correct)) for x, y in pairs)
    ks = [2**i for i in range(samples.bit_length())]
    names = [f"Pass@{k}" for k in ks]
    values = [(_pass_at_ks(x, ks), _pass_at_ks(y, ks)) for x, y in pairs]
    of_arms = np.array(values)  # [problems, 2, ks]
    known = ~np.isnan(of_arms).any(axis=1)  # the curves are over the problems of the table
    return Comparison(
        problems=len(both),
        only_in_one=len(one.problems.keys() ^ other.problems.keys()),
        not_judged=len(one.problems.keys() & other.problems.keys()) - len(both),
        unjudged_samples=(one.unjudged, other.unjudged),
        settings=_settings_that_differ(a, b),
        curves=tuple(_curve(ks, of_arms[:, arm], known) for arm in (0, 1)),
        pass_at_k=_table(names, values),
        equal_budget=_equal_budget(pairs, ks),
        equal_length=_table(names, [pass_at_k_at_equal_length(x, y, ks) for x, y in pairs]),
        diversity=_diversity(pairs),
        grades=_grades([(one.grades[problem], other.grades[problem]) for problem in both]),
    )


class _Samples(NamedTuple):
    """The samples of one evaluation.

    Attributes:
      problems: Problem id -> (prompt, right answer).
      judged: Problem id -> its judged samples, if there are any.
      grades: Problem id -> the means of what its judged samples are graded by.
      unjudged: Number of samples without a verdict.
    """

    problems: dict[int, tuple[str, str]]
    judged: dict[int, ProblemSamples]
    grades: dict[int, dict[str, float]]
    unjudged: int


def _read(directory: Path) -> _Samples:
    problems: dict[int, tuple[str, str]] = {}
    rows: dict[int, dict[int, tuple]] = {}
    unjudged = 0
    counts: Counter[int] = Counter()
    result = read_result(directory)
    if result is None:
        raise ValueError(f"{directory}: must have {RESULT_FILE}, got an incomplete evaluation")
    total = result.problems * result.samples
    for row in track("samples", read_samples_once(directory), total, f"of {directory} read"):
        counts[row["problem"]] += 1
        problems[row["problem"]] = (row["prompt"], row["right_answer"])
        verdict = Verdict(row["verdict"])
        if verdict.is_judgement:
            tokens = np.array(row["tokens"], np.int32)
            sample = (
                *(verdict is Verdict.CORRECT, tokens.size, row["answer"], tokens),
                grades_of(row),
            )
            rows.setdefault(row["problem"], {})[row["sample"]] = sample
        unjudged += not verdict.is_judgement
    if not problems:
        raise ValueError(
            f"{directory}: must hold the samples of the evaluation, got only {RESULT_FILE}"
        )
    _check_counts(directory, counts, result)
    judged, graded = {}, {}
    for problem in sorted(rows):
        samples = [sample for _, sample in sorted(rows[problem].items())]
        correct, lengths, answers, tokens, grades = zip(*samples, strict=True)
        names = dict.fromkeys(name for of_sample in grades for name in of_sample)
        graded[problem] = {
            name: float(np.mean([one[name] for one in grades if name in one])) for name in names
        }
        judged[problem] = ProblemSamples(
            np.array(correct, bool), np.array(lengths), answers, tokens
        )
    return _Samples(problems, judged, graded, unjudged)


def _check_counts(directory: Path, counts: Mapping[int, int], result: Evaluation) -> None:
    """Check that an evaluation has the samples that its result is of.

    Args:
      directory: Its directory.
      counts: Problem id -> number of its samples.
      result: The result.
    """
    where = f"{directory}: must hold what {RESULT_FILE} is of,"
    if len(counts) != result.problems:
        raise ValueError(f"{where} {result.problems} problems, got {len(counts)}")
    for problem, count in counts.items():
        if count != result.samples:
            raise ValueError(
                f"{where} {result.samples} samples of each problem, got {count} of {problem}"
            )


def _settings_that_differ(a: Path, b: Path) -> list[str]:
    """Differences of sampling and judging settings, in the sections that both have stored."""
    one, other = (_settings(directory / CONFIG_FILE) for directory in (a, b))
    lines = []
    for section in ("task", "evaluation"):
        if section in one and section in other:
            for name in sorted(one[section].keys() | other[section].keys()):
                x, y = one[section].get(name), other[section].get(name)
                if x != y and name not in ("rows_per_call", "train_split"):
                    lines.append(f"{section}.{name}: {x!r} in A, {y!r} in B")
    return lines


def _settings(path: Path) -> dict[str, Any]:
    plain = read_recorded_config(path)
    # A training run stores the section only.
    return plain if "evaluation" in plain else {"evaluation": plain} if plain else {}


def _curve(ks: Sequence[int], values: np.ndarray, known: np.ndarray) -> Curve:
    """The curve of values [problems, ks], of which those that are known count."""
    curve = {}
    for i, k in enumerate(ks):
        counted = values[known[:, i], i]
        curve[k] = (*map(float, wilson_interval(counted)), counted.size)
    return curve


def _pass_at_ks(samples: ProblemSamples, ks: Sequence[int]) -> np.ndarray:
    """f64[ks], NaN where there are fewer than k samples."""
    n, c = len(samples.correct), int(np.sum(samples.correct))
    return np.array([pass_at_k(n, c, k) if k <= n else np.nan for k in ks])


def _equal_budget(
    pairs: Sequence[tuple[ProblemSamples, ProblemSamples]], ks: Sequence[int]
) -> list[ComparisonRow]:
    """Pass@budget, for budgets that most problems have enough samples for.

    A row is over the problems whose samples reach its budget.
    """
    mean = np.mean([np.mean(samples.lengths) for pair in pairs for samples in pair])
    totals = np.array([min(np.sum(samples.lengths) for samples in pair) for pair in pairs])
    budgets = [round(k * mean) for k in ks if np.mean(totals >= round(k * mean)) > 0.5]

    def within_budgets(samples: ProblemSamples, total: int) -> np.ndarray:
        spent = [budget for budget in budgets if budget <= total]
        values = pass_at_budget(samples.correct, samples.lengths, spent) if spent else []
        return np.append(values, np.full(len(budgets) - len(spent), np.nan))

    values = [
        (within_budgets(x, total), within_budgets(y, total))
        for (x, y), total in zip(pairs, totals.tolist(), strict=True)
    ]
    return _table([f"Pass@{budget} tokens" for budget in budgets], values)


def _diversity(pairs: Sequence[tuple[ProblemSamples, ProblemSamples]]) -> list[ComparisonRow]:
    values = [diversity_at_equal_accuracy(*pair) for pair in pairs]
    names = list(values[0])
    pairs = [
        tuple(np.array(arm) for arm in zip(*(v[name] for name in names), strict=True))
        for v in values
    ]
    return _table([name.replace("_", " ") for name in names], pairs)


def _grades(pairs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> list[ComparisonRow]:
    """Means of the grades that both arms have, for each problem."""
    names = list(dict.fromkeys(name for pair in pairs for arm in pair for name in arm))
    values = [
        tuple(np.array([arm.get(name, np.nan) for name in names]) for arm in pair) for pair in pairs
    ]
    return _table(names, values, are_fractions=False)


def _table(
    names: Sequence[str],
    values: Sequence[tuple[np.ndarray, np.ndarray]],
    are_fractions: bool = True,
) -> list[ComparisonRow]:
    """Test each measure over the problems that have it in both runs.

    Args:
      names: Names of the measures.
      values: For each problem, f64[measures] of A and of B; NaN for missing values.
      are_fractions: Whether all possible values are in [0, 1].
    """
    if not names:
        return []
    of_a, of_b = (
        np.array(arm, np.float64).reshape(-1, len(names)) for arm in zip(*values, strict=True)
    )
    known = ~np.isnan(of_a) & ~np.isnan(of_b)
    rows: dict[int, ComparisonRow] = {}
    # Measures over the same problems share the resamples.
    for problems in np.unique(known, axis=1).T:
        columns = np.flatnonzero((known == problems[:, None]).all(axis=0))
        if not problems.any():
            continue
        one, other = of_a[np.ix_(problems, columns)], of_b[np.ix_(problems, columns)]
        test = paired_bootstrap(other, one, is_fraction=are_fractions)
        p_values = sign_flip_p_value(other, one)
        for i, column in enumerate(columns.tolist()):
            rows[column] = ComparisonRow(
                name=names[column],
                problems=int(problems.sum()),
                a=float(one[:, i].mean()),
                b=float(other[:, i].mean()),
                difference=float(test.estimate[i]),
                low=float(test.low[i]),
                high=float(test.high[i]),
                p_value=float(p_values[i]),
                p_adjusted=1.0,
            )
    ordered = [rows[column] for column in sorted(rows)]
    adjusted = holm([row.p_value for row in ordered]).tolist()
    return [
        dataclasses.replace(row, p_adjusted=p) for row, p in zip(ordered, adjusted, strict=True)
    ]
