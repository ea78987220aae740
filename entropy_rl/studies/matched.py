"""Controls of the hypotheses on Pass@K: samples of equal length, and equal budgets of tokens."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from entropy_rl.config.study import pass_at
from entropy_rl.stats.matched import ProblemSamples, pass_at_budget, pass_at_k_at_equal_length
from entropy_rl.studies.grid import Design, Unit
from entropy_rl.studies.hypotheses import Difference, Tallies, difference_in
from entropy_rl.studies.measures import UnitResult
from entropy_rl.studies.records import ProblemTally


def matched_differences(
    design: Design, results: Mapping[Unit, UnitResult]
) -> dict[str, dict[str, Difference]]:
    """Repeat the comparisons of the hypotheses on Pass@K with matched samples.

    "equal length" is `pass_at_k_at_equal_length`, and "equal budget" `pass_at_budget` with K times
    the mean length of the two runs in tokens, over the problems whose samples have as many.
    Exploratory: not registered, not corrected for multiple comparisons.

    Returns:
      Hypothesis -> control -> difference, over the seeds whose records have the lengths of all
      judged samples. Hypotheses without such seeds are left out.
    """
    recorded = {unit: result for unit, result in results.items() if _has_lengths(result)}
    found: dict[str, dict[str, Difference]] = {}
    for hypothesis in design.study.registered():
        k = pass_at(hypothesis.endpoint)
        if k is None:
            continue
        arms = design, recorded, hypothesis.arm, hypothesis.against
        controls = {
            name: difference_in(functools.partial(of, k), *arms) for name, of in _CONTROLS.items()
        }
        if any(difference.seeds for difference in controls.values()):
            found[hypothesis.name] = controls
    return found


def _has_lengths(result: UnitResult) -> bool:
    return all(len(tally.lengths) == tally.judged for tally in result.problems.values())


def _at_equal_length(k: int, *arms: Tallies) -> np.ndarray:
    pairs = zip(*(map(_samples, of_arm.values()) for of_arm in arms), strict=True)
    found = [
        pass_at_k_at_equal_length(*pair, [k])
        if all(len(samples.correct) for samples in pair)
        else np.full((2, 1), np.nan)
        for pair in pairs
    ]
    return np.array(found).reshape(-1, 2).T


def _within_equal_budget(k: int, *arms: Tallies) -> np.ndarray:
    of_arms = [[_samples(tally) for tally in of_arm.values()] for of_arm in arms]
    means = [np.mean(x.lengths) for of_arm in of_arms for x in of_arm if len(x.lengths)]
    budget = round(k * np.mean(means)) if means else 0

    def value(samples: ProblemSamples) -> float:
        if not len(samples.lengths) or np.sum(samples.lengths) < budget:
            return np.nan
        return pass_at_budget(samples.correct, samples.lengths, [budget])[0]

    return np.array([[value(samples) for samples in of_arm] for of_arm in of_arms])


def _samples(tally: ProblemTally) -> ProblemSamples:
    correct, lengths = np.array(tally.is_correct, bool), np.array(tally.lengths, np.int64)
    return ProblemSamples(correct, lengths, (), ())


_CONTROLS = {"equal length": _at_equal_length, "equal budget": _within_equal_budget}
