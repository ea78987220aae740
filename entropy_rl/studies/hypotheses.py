"""Tests of the registered hypotheses: differences of two arms over seeds and problems."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from entropy_rl.config.study import BASE, Hypothesis
from entropy_rl.stats.bootstrap import crossed_bootstrap, holm
from entropy_rl.studies.grid import Design, Unit
from entropy_rl.studies.measures import CONFIDENCE, UnitResult
from entropy_rl.studies.records import ProblemTally

Tallies = Mapping[int, ProblemTally]  # problem id -> its tally

Decision = Literal["supports", "contradicts", "no material effect", "not settled"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference of two arms in an endpoint.

    Attributes:
      difference: Mean of arm - against, with the interval `low` to `high` of `crossed_bootstrap`;
        NaN without data.
      low: See `difference`.
      high: See `difference`.
      p_value: Two-sided p-value of "no difference"; 1 without data.
      arm_mean: Mean of the endpoint over seeds and problems.
      against_mean: The same of the other arm.
      seeds: Seeds that are complete in both arms; all numbers are over these.
      seeds_registered: Seeds that the study registers for both arms.
      problems: Problems with an endpoint in all of these runs.
      problems_left_out: Problems with too few judged samples in one of them.
    """

    difference: float
    low: float
    high: float
    p_value: float
    arm_mean: float
    against_mean: float
    seeds: int
    seeds_registered: int
    problems: int
    problems_left_out: int


@dataclasses.dataclass(frozen=True)
class HypothesisTest(Difference):
    """Test of a registered hypothesis.

    Attributes:
      hypothesis: The hypothesis, as registered.
      decision: By the rule of `decide`; "not settled" without data.
      p_adjusted: p after Holm's correction over all registered hypotheses.
    """

    hypothesis: Hypothesis
    decision: Decision
    p_adjusted: float

    @property
    def is_final(self) -> bool:
        """Whether all registered seeds are complete."""
        return self.seeds == self.seeds_registered


def decide(hypothesis: Hypothesis, low: float, high: float, p_adjusted: float) -> Decision:
    """Apply the registered decision rule; the first line that holds decides:

    no material effect   -s < low and high < s, for the smallest effect of interest s
    supports             adjusted p <= alpha, and the difference is positive
    contradicts          adjusted p <= alpha, and the difference is negative
    not settled          otherwise

    Args:
      hypothesis: Defines s and alpha.
      low: Low end of the interval of coverage 1 - alpha, not adjusted.
      high: High end. If p_adjusted <= alpha, both ends have the sign of the difference.
      p_adjusted: p-value after Holm's correction.
    """
    if -hypothesis.smallest_effect < low and high < hypothesis.smallest_effect:
        return "no material effect"
    if p_adjusted <= hypothesis.alpha:
        return "supports" if low + high > 0 else "contradicts"
    return "not settled"


def hypothesis_tests(design: Design, results: Mapping[Unit, UnitResult]) -> list[HypothesisTest]:
    """Test every registered hypothesis on the complete units.

    Raises:
      ValueError: A hypothesis has complete units, but no problem with enough judged samples.
    """
    registered = design.study.registered()
    differences = [
        arm_difference(design, results, h.arm, h.against, h.endpoint, h.alpha) for h in registered
    ]
    for hypothesis, difference in zip(registered, differences, strict=True):
        if difference.seeds and not difference.problems:
            raise ValueError(
                f"{hypothesis.name}: no problem has enough judged samples for {hypothesis.endpoint}"
            )
    adjusted = holm([d.p_value for d in differences]).tolist() if differences else []
    return [
        HypothesisTest(
            **dataclasses.asdict(difference),
            hypothesis=hypothesis,
            decision=decide(hypothesis, difference.low, difference.high, p),
            p_adjusted=p,
        )
        for hypothesis, difference, p in zip(registered, differences, adjusted, strict=True)
    ]


def baseline_differences(
    design: Design, results: Mapping[Unit, UnitResult]
) -> dict[str, dict[str, Difference]]:
    """Compare every arm with the baseline arm (`against` of the first hypothesis).

    Exploratory: not registered, not corrected for multiple comparisons.

    Returns:
      Arm -> endpoint of a hypothesis -> difference. Arms without seeds or problems in common with
      the baseline are left out.
    """
    registered = design.study.registered()
    if not registered:
        return {}
    baseline = registered[0].against
    arms = [arm for arm in dict.fromkeys(unit.arm for unit in results) if arm != baseline]
    endpoints = list(dict.fromkeys(hypothesis.endpoint for hypothesis in registered))
    alpha = 1 - CONFIDENCE
    differences = {
        arm: {e: arm_difference(design, results, arm, baseline, e, alpha) for e in endpoints}
        for arm in arms
    }
    return {
        arm: of_arm
        for arm, of_arm in differences.items()
        if all(difference.problems for difference in of_arm.values())
    }


def arm_difference(
    design: Design,
    results: Mapping[Unit, UnitResult],
    arm: str,
    against: str,
    endpoint: str,
    alpha: float,
) -> Difference:
    """Difference of two arms in an endpoint, over the seeds and problems that both have.

    Args:
      design: The study.
      results: The complete units.
      arm: An arm.
      against: The arm to compare with.
      endpoint: Endpoint of a hypothesis, such as "pass@8".
      alpha: The interval has coverage 1 - alpha.
    """

    def values(*arms: Tallies) -> np.ndarray:
        return np.array([[tally.endpoint(endpoint) for tally in of.values()] for of in arms])

    is_fraction = endpoint not in ("length", "entropy")
    return difference_in(
        values, design, results, arm, against, confidence=1 - alpha, is_fraction=is_fraction
    )


def difference_in(
    values: Callable[[Tallies, Tallies], np.ndarray],
    design: Design,
    results: Mapping[Unit, UnitResult],
    arm: str,
    against: str,
    *,
    confidence: float = CONFIDENCE,
    is_fraction: bool = True,
) -> Difference:
    """Difference of two arms in a measure of two runs, over the seeds and problems of both.

    Args:
      values: (tallies of a run of `arm`, those of one of `against`, of the same problems) ->
        f64[2, problems], the measure of both; NaN where a problem has none.
      design: As in `arm_difference`.
      results: As in `arm_difference`.
      arm: As in `arm_difference`.
      against: As in `arm_difference`.
      confidence: Of the interval.
      is_fraction: Whether all values are in [0, 1].
    """
    pair = (arm, against)
    registered = [set(design.seeds(arm)) for arm in pair if arm != BASE]
    seeds = sorted(set.intersection(*registered))

    def unit(arm: str, seed: int) -> Unit:
        return Unit(arm, design.seeds(BASE)[0] if arm == BASE else seed)

    complete = [seed for seed in seeds if all(unit(arm, seed) in results for arm in pair)]
    runs = [[results[unit(arm, seed)].problems for arm in pair] for seed in complete]
    ids = sorted(set().union(*(problems for of_seed in runs for problems in of_seed)))
    found = np.full((2, len(complete), len(ids)), np.nan)
    for seed, of_seed in enumerate(runs):
        both = [problem for problem in ids if all(problem in of_arm for of_arm in of_seed)]
        common = [{problem: of_arm[problem] for problem in both} for of_arm in of_seed]
        found[:, seed, np.searchsorted(ids, both)] = values(*common)
    has_value = np.isfinite(found).all(axis=(0, 1))
    found = found[:, :, has_value]
    counts = dict(
        seeds=len(complete),
        seeds_registered=len(seeds),
        problems=int(has_value.sum()),
        problems_left_out=int((~has_value).sum()),
    )
    if not has_value.any():
        return Difference(
            *[math.nan] * 3, p_value=1.0, arm_mean=math.nan, against_mean=math.nan, **counts
        )
    test = crossed_bootstrap(*found, confidence=confidence, is_fraction=is_fraction)
    return Difference(
        *map(float, test),
        arm_mean=float(found[0].mean()),
        against_mean=float(found[1].mean()),
        **counts,
    )
