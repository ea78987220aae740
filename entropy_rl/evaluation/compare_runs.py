"""Whether one evaluation beats another, and whether that is more than length or accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.evaluation.samples import RESULT_FILE, read_samples
from entropy_rl.runs.directory import CONFIG_FILE, EVALUATIONS_DIRECTORY
from entropy_rl.runs.jsonl import finite
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

LEVEL = 0.05  # of significance, for adjusted p-values

Curve = dict[int, tuple[float, float, float, int]]  # K -> (Pass@K, low, high, problems)


@dataclasses.dataclass(frozen=True)
class Line:
    """One measure of both runs, over the problems that have it in both.

    Attributes:
      name: Such as "Pass@8".
      problems: How many problems these are.
      a: Mean of run A.
      b: Mean of run B.
      difference: b - a, with the 95% interval `low` to `high` of the paired bootstrap over
        problems.
      low: See `difference`.
      high: See `difference`.
      p_value: Of "no difference", by the paired bootstrap.
      p_adjusted: The same after Holm's correction over the lines of its table.
      p_sign_flips: Of "no difference", by the sign-flip test, as a check by other means; not
        adjusted.
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
    p_sign_flips: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant at `LEVEL`, after the correction."""
        return self.p_adjusted <= LEVEL


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same problems.

    Attributes:
      problems: Problems with a judged sample in both; all tables are about these.
      only_in_one: Problems that one of the evaluations lacks.
      not_judged: Problems in both of which one has no judged sample.
      unjudged_samples: Samples without a judgement, of A and of B.
      settings: How the settings of the evaluations differ, a line each.
      curves: Of A and of B, K -> (Pass@K, low, high, problems), over the same problems.
      pass_at_k: Pass@K.
      equal_budget: Pass@budget: K times the mean length of both runs, in tokens.
      equal_length: Pass@K over samples of equal lengths; empty where there are none.
      diversity: Unique answers and distinct-n over equally many correct and equally many wrong
        samples; empty where there are none.
    """

    problems: int
    only_in_one: int
    not_judged: int
    unjudged_samples: tuple[int, int]
    settings: list[str]
    curves: tuple[Curve, Curve]
    pass_at_k: list[Line]
    equal_budget: list[Line]
    equal_length: list[Line]
    diversity: list[Line]

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it, with null for an interval without end."""
        return finite(dataclasses.asdict(self))


def find_evaluation(path: Path) -> Path:
    """The directory of an evaluation: itself, or the last evaluation of a training run.

    Raises:
      ValueError: If there is no complete one.
    """
    if (path / RESULT_FILE).is_file():
        return path
    inside = [found.parent for found in (path / EVALUATIONS_DIRECTORY).glob(f"*/{RESULT_FILE}")]
    steps = [directory for directory in inside if directory.name.isdecimal()]
    if steps:
        return max(steps, key=lambda directory: int(directory.name))
    what = "holds no complete evaluation" if path.is_dir() else "is no directory"
    raise ValueError(f"{path}: {what}; allowed: what `evaluate` wrote, or a run with evaluations")


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compares two evaluations.

    Args:
      a: Directory of the one, the baseline.
      b: Directory of the other.

    Returns:
      The comparison. Samples without a judgement are left out.

    Raises:
      ValueError: If they are not evaluations of the same problems, or their samples are gone.
    """
    one, other = _read(a), _read(b)
    for problem in one.problems.keys() & other.problems.keys():
        if one.problems[problem] != other.problems[problem]:
            raise ValueError(
                f"{a} and {b}: problem {problem} is not the same in both; allowed: evaluations of "
                "the same "
                "problems"
            )
    both = [problem for problem in one.arms if problem in other.arms]
    if not both:
        raise ValueError(
            f"{a} and {b} have no judged problem in common; allowed: the same problems"
        )
    pairs = [(one.arms[problem], other.arms[problem]) for problem in both]
    most = max(min(len(x.correct), len(y.correct)) for x, y in pairs)
    ks = [2**i for i in range(most.bit_length())]
    names = [f"Pass@{k}" for k in ks]
    values = [(_pass_at_ks(x, ks), _pass_at_ks(y, ks)) for x, y in pairs]
    return Comparison(
        problems=len(both),
        only_in_one=len(one.problems.keys() ^ other.problems.keys()),
        not_judged=len(one.problems.keys() & other.problems.keys()) - len(both),
        unjudged_samples=(one.unjudged, other.unjudged),
        settings=_settings_that_differ(a, b),
        curves=tuple(_curve(ks, [pair[arm] for pair in values]) for arm in (0, 1)),
        pass_at_k=_table(names, values),
        equal_budget=_equal_budget(pairs, ks),
        equal_length=_table(names, [pass_at_k_at_equal_length(x, y, ks) for x, y in pairs]),
        diversity=_diversity(pairs),
    )


class _Arm(NamedTuple):
    """One evaluation: problem -> (prompt, right answer); -> its judged samples, if any; the rest,
    counted.
    """

    problems: dict[int, tuple[str, str]]
    arms: dict[int, ProblemSamples]
    unjudged: int


def _read(directory: Path) -> _Arm:
    problems: dict[int, tuple[str, str]] = {}
    rows: dict[int, dict[int, tuple]] = {}
    unjudged = 0
    for row in read_samples(directory):
        problems[row["problem"]] = (row["prompt"], row["right_answer"])
        verdict = Verdict(row["verdict"])
        if verdict.is_judgement:
            tokens = np.array(row["tokens"], np.int32)
            kept = (verdict is Verdict.CORRECT, tokens.size, row["answer"], tokens)
            rows.setdefault(row["problem"], {})[row["sample"]] = kept
        unjudged += not verdict.is_judgement
    if not problems:
        raise ValueError(
            f"{directory}: holds no samples, which a comparison needs beside {RESULT_FILE}"
        )
    arms = {}
    for problem in sorted(rows):
        samples = [kept for _, kept in sorted(rows[problem].items())]
        correct, lengths, answers, tokens = zip(*samples, strict=True)
        arms[problem] = ProblemSamples(np.array(correct, bool), np.array(lengths), answers, tokens)
    return _Arm(problems, arms, unjudged)


def _settings_that_differ(a: Path, b: Path) -> list[str]:
    """Settings of sampling and judging; what is not written down in both cannot be compared."""
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
    # A training run keeps the section alone.
    return plain if "evaluation" in plain else {"evaluation": plain} if plain else {}


def _curve(ks: Sequence[int], values: Sequence[np.ndarray]) -> Curve:
    values = np.array(values)
    curve = {}
    for i, k in enumerate(ks):
        known = values[~np.isnan(values[:, i]), i]
        curve[k] = (*map(float, wilson_interval(known)), known.size)
    return curve


def _pass_at_ks(samples: ProblemSamples, ks: Sequence[int]) -> np.ndarray:
    """f64[ks], NaN where there are fewer than k samples."""
    n, c = len(samples.correct), int(np.sum(samples.correct))
    return np.array([pass_at_k(n, c, k) if k <= n else np.nan for k in ks])


def _equal_budget(
    pairs: Sequence[tuple[ProblemSamples, ProblemSamples]], ks: Sequence[int]
) -> list[Line]:
    """For budgets that most problems have enough samples for; the others are not in the line."""
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


def _diversity(pairs: Sequence[tuple[ProblemSamples, ProblemSamples]]) -> list[Line]:
    values = [diversity_at_equal_accuracy(*pair) for pair in pairs]
    names = list(values[0])
    pairs = [
        tuple(np.array(arm) for arm in zip(*(v[name] for name in names), strict=True))
        for v in values
    ]
    return _table([name.replace("_", " ") for name in names], pairs)


def _table(names: Sequence[str], values: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Line]:
    """Tests each measure over the problems that have it in both runs.

    Args:
      names: Of the measures.
      values: For each problem, f64[measures] of A and of B; NaN where there is none.
    """
    if not names:
        return []
    of_a, of_b = (
        np.array(arm, np.float64).reshape(-1, len(names)) for arm in zip(*values, strict=True)
    )
    known = ~np.isnan(of_a) & ~np.isnan(of_b)
    lines: dict[int, Line] = {}
    # Measures of the same problems are tested together, on the same resamples.
    for problems in np.unique(known, axis=1).T:
        columns = np.flatnonzero((known == problems[:, None]).all(axis=0))
        if not problems.any():
            continue
        one, other = of_a[np.ix_(problems, columns)], of_b[np.ix_(problems, columns)]
        test, sign_flips = paired_bootstrap(other, one), sign_flip_p_value(other, one)
        for i, column in enumerate(columns.tolist()):
            lines[column] = Line(
                name=names[column],
                problems=int(problems.sum()),
                a=float(one[:, i].mean()),
                b=float(other[:, i].mean()),
                difference=float(test.estimate[i]),
                low=float(test.low[i]),
                high=float(test.high[i]),
                p_value=float(test.p_value[i]),
                p_adjusted=1.0,
                p_sign_flips=float(sign_flips[i]),
            )
    ordered = [lines[column] for column in sorted(lines)]
    adjusted = holm([line.p_value for line in ordered]).tolist()
    return [
        dataclasses.replace(line, p_adjusted=p) for line, p in zip(ordered, adjusted, strict=True)
    ]
