"""Whether one evaluation beats another, and whether that is more than length or accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.comparison import (
    ProblemSamples,
    diversity_at_equal_accuracy,
    largest_budget,
    pass_at_budget,
    pass_at_k_at_equal_length,
)
from entropy_rl.evaluation.samples import RESULT_FILE, read_samples
from entropy_rl.files import finite
from entropy_rl.passk import pass_at_k
from entropy_rl.run_directory import EVALUATIONS_DIRECTORY
from entropy_rl.significance import holm, paired_bootstrap, sign_flip_p_value
from entropy_rl.tasks.task import Verdict

LEVEL = 0.05  # of significance, for adjusted p-values


@dataclasses.dataclass(frozen=True)
class Line:
    """One measure of both runs, over the problems that have it in both.

    Attributes:
      name: Such as "Pass@8".
      problems: How many problems these are.
      a: Mean of run A.
      b: Mean of run B.
      difference: b - a, with the 95% interval `low` to `high` of the paired bootstrap over problems.
      low: See `difference`.
      high: See `difference`.
      p_value: Of "no difference", by the paired bootstrap.
      p_adjusted: The same after Holm's correction over the lines of its table.
      p_sign_flips: Of "no difference", by the sign-flip test, as a check by other means; not adjusted.
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
      problems: Problems that both have.
      only_in_one: Problems that one of them lacks.
      pass_at_k: Pass@K.
      equal_budget: Pass@budget: K times the mean length of both runs, in tokens.
      equal_length: Pass@K over samples of equal lengths.
      diversity: Unique answers and distinct-n over equally many correct and equally many wrong samples.
    """

    problems: int
    only_in_one: int
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
    if inside:
        return max(inside, key=lambda directory: int(directory.name))
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
      ValueError: If they are not evaluations of the same problems.
    """
    (prompts_a, arm_a), (prompts_b, arm_b) = _read(a), _read(b)
    both = [problem for problem in arm_a if problem in arm_b]
    other = next((p for p in both if prompts_a[p] != prompts_b[p]), None)
    if other is not None:
        raise ValueError(
            f"{a} and {b}: problem {other} is not the same in both; allowed: evaluations of the same problems"
        )
    if not both:
        raise ValueError(f"{a} and {b} have no judged problem in common; allowed: the same problems")
    pairs = [(arm_a[problem], arm_b[problem]) for problem in both]
    most = max(min(len(x.correct), len(y.correct)) for x, y in pairs)
    ks = [2**i for i in range(most.bit_length())]
    names = [f"Pass@{k}" for k in ks]
    return Comparison(
        problems=len(both),
        only_in_one=len(set(arm_a) ^ set(arm_b)),
        pass_at_k=_table(names, [(_pass_at_ks(x, ks), _pass_at_ks(y, ks)) for x, y in pairs]),
        equal_budget=_equal_budget(pairs, ks),
        equal_length=_table(names, [pass_at_k_at_equal_length(x, y, ks) for x, y in pairs]),
        diversity=_diversity(pairs),
    )


def _read(directory: Path) -> tuple[dict[int, str], dict[int, ProblemSamples]]:
    """The prompt, and the judged samples in the order of their numbers, of each problem that has any."""
    prompts: dict[int, str] = {}
    rows: dict[int, dict[int, tuple]] = {}
    for row in read_samples(directory):
        prompts[row["problem"]] = row["prompt"]
        verdict = Verdict(row["verdict"])
        if verdict.is_judgement:
            tokens = np.array(row["tokens"], np.int32)
            kept = (verdict is Verdict.CORRECT, tokens.size, row["answer"], tokens)
            rows.setdefault(row["problem"], {})[row["sample"]] = kept
    arms = {}
    for problem in sorted(rows):
        correct, lengths, answers, tokens = zip(
            *(kept for _, kept in sorted(rows[problem].items())), strict=True
        )
        arms[problem] = ProblemSamples(np.array(correct, bool), np.array(lengths), answers, tokens)
    return prompts, arms


def _pass_at_ks(samples: ProblemSamples, ks: Sequence[int]) -> np.ndarray:
    """f64[ks], NaN where there are fewer than k samples."""
    n, c = len(samples.correct), int(np.sum(samples.correct))
    return np.array([pass_at_k(n, c, k) if k <= n else np.nan for k in ks])


def _equal_budget(pairs: Sequence[tuple[ProblemSamples, ProblemSamples]], ks: Sequence[int]) -> list[Line]:
    most = largest_budget(*([samples.lengths for samples in arm] for arm in zip(*pairs, strict=True)))
    mean = np.mean([np.mean(samples.lengths) for pair in pairs for samples in pair])
    budgets = [round(k * mean) for k in ks if round(k * mean) <= most]
    values = [tuple(pass_at_budget(s.correct, s.lengths, budgets) for s in pair) for pair in pairs]
    return _table([f"Pass@{budget} tokens" for budget in budgets], values)


def _diversity(pairs: Sequence[tuple[ProblemSamples, ProblemSamples]]) -> list[Line]:
    values = [diversity_at_equal_accuracy(*pair) for pair in pairs]
    names = list(values[0])
    pairs = [tuple(np.array(arm) for arm in zip(*(v[name] for name in names), strict=True)) for v in values]
    return _table([name.replace("_", " ") for name in names], pairs)


def _table(names: Sequence[str], values: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Line]:
    """Tests each measure over the problems that have it in both runs.

    Args:
      names: Of the measures.
      values: For each problem, f64[measures] of A and of B; NaN where there is none.
    """
    of_a, of_b = (np.array(arm, np.float64).reshape(-1, len(names)) for arm in zip(*values, strict=True))
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
    return [dataclasses.replace(line, p_adjusted=p) for line, p in zip(ordered, adjusted, strict=True)]
