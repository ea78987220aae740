"""Contrasts of entropy between groups of tokens or sentences, with the problem as the unit.

Tokens of one response are not independent, nor are responses to one problem: a hard problem raises
the entropy everywhere, and a model repeats itself over its samples. A test over tokens counts every
repetition as new evidence. Here groups are compared within each problem, which gives one difference
per problem.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entropy_rl.stats.bootstrap import holm, paired_bootstrap, sign_flip_p_value
from entropy_rl.stats.pass_at_k import resampled_counts

_NAN = float("nan")


class Group(NamedTuple):
    """Entropies with the problem of each."""

    values: np.ndarray  # f64[n], nats
    problems: np.ndarray  # int[n]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean of `count` values from `problems` problems, with its 95% interval `low` to `high`."""

    count: int
    problems: int
    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Contrast of two groups; statistics are NaN where they cannot be computed.

    Attributes:
      name: Name of the group.
      against: Name of the other group.
      group: Summary of the group over all its values.
      other: Summary of the other group.
      problems: Problems with values of both; all of the following except `cohens_d` are over these.
      difference: Mean over problems of (group mean - other mean), with interval `low` to `high`.
      low: See `difference`.
      high: See `difference`.
      cohens_d: Difference of the means of all values over their pooled standard deviation.
      superiority: Probability that a value of the group exceeds one of the other group in the same
        problem, ties counting half, averaged over problems; 0.5 for no difference. Cliff's delta is
        2 superiority - 1.
      p_value: Two-sided p-value of "no difference within problems", by sign flips.
      p_adjusted: p-value after Holm's correction over the contrasts of a table.
    """

    name: str
    against: str
    group: Summary
    other: Summary
    problems: int
    difference: float
    low: float
    high: float
    cohens_d: float
    superiority: float
    p_value: float
    p_adjusted: float = _NAN


def contrast(
    name: str, group: Group, against: str, other: Group, *, resamples: int = 4000, seed: int = 0
) -> Contrast:
    """Compare two groups of values within problems.

    With x̄_c and ȳ_c the means of the groups in problem c, and C problems that have both:

    difference = Σ_c (x̄_c - ȳ_c) / C,  tested by flipping the signs of x̄_c - ȳ_c
    (`sign_flip_p_value`)

    A permutation of labels among tokens would treat tokens as independent; a sign flip treats
    problems as independent. The interval is that of `paired_bootstrap` over problems; intervals of
    the group means resample problems with all their values.

    Type I error at p <= 0.05 in 1,000 simulations (standard error 0.007): exponential entropies,
    log-normal scales of problems (σ = 0.7), 1 to 7 values of the group and 100 others in each
    problem. "Random effect": the group's mean in a problem is Gamma(4, 1/4) times the others'.

      problems               10     30    100    random effect:   10     30    100
      sign flips          0.061  0.067  0.060                  0.085  0.081  0.059
      t-test of tokens    0.118  0.081  0.070                  0.172  0.144  0.125

    Sources: Cohen (1988), section 2.2; superiority: McGraw & Wong, Psychological Bulletin 111
      (1992).

    Args:
      name: Name of the group.
      group: Its values and their problems.
      against: Name of the other group.
      other: Its values and their problems.
      resamples: Number of bootstrap resamples, and of sign patterns.
      seed: Seed of both.

    Returns:
      The contrast, not adjusted. With five problems or fewer it is never significant at 0.05.
    """
    ids = np.union1d(group.problems, other.problems)
    one, two = (_Moments.of(g, ids) for g in (group, other))
    both = (one.count > 0) & (two.count > 0)
    summaries = _summary(one, resamples, seed), _summary(two, resamples, seed)
    if not both.any():
        return Contrast(name, against, *summaries, 0, *(_NAN,) * 6)
    means = [moments.total[both] / moments.count[both] for moments in (one, two)]
    test = paired_bootstrap(*means, resamples=resamples, seed=seed)
    return Contrast(
        name=name,
        against=against,
        group=summaries[0],
        other=summaries[1],
        problems=int(both.sum()),
        difference=float(test.estimate),
        low=float(test.low),
        high=float(test.high),
        cohens_d=_cohens_d(group.values, other.values),
        superiority=_mean_superiority(group, other, ids[both]),
        p_value=float(sign_flip_p_value(*means, patterns=resamples, seed=seed)),
    )


def adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Adjust the p-values of a table by Holm's correction, over the contrasts that have one."""
    known = [i for i, line in enumerate(contrasts) if line.problems]
    corrected = dict(zip(known, holm([contrasts[i].p_value for i in known]).tolist(), strict=True))
    return [
        dataclasses.replace(line, p_adjusted=corrected.get(i, _NAN))
        for i, line in enumerate(contrasts)
    ]


def superiority(values: ArrayLike, others: ArrayLike) -> float:
    """P(x > y) + P(x = y) / 2 for x in `values` and y in `others`, both f64[...] and not empty."""
    values, others = np.asarray(values), np.sort(np.asarray(others))
    below = np.searchsorted(others, values, side="left") + np.searchsorted(
        others, values, side="right"
    )
    return float(below.mean() / (2 * len(others)))


class _Moments(NamedTuple):
    """Count and sum of the values of each problem; f64[problems]."""

    count: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, group: Group, ids: np.ndarray) -> _Moments:
        place = np.searchsorted(ids, group.problems)
        return cls(*(np.bincount(place, w, len(ids)) for w in (np.ones(len(place)), group.values)))


def _summary(moments: _Moments, resamples: int, seed: int) -> Summary:
    """Mean of all values, a ratio of sums, with a percentile bootstrap over problems."""
    here = moments.count > 0
    count, total = moments.count[here], moments.total[here]
    if not len(count):
        return Summary(0, 0, _NAN, _NAN, _NAN)
    means = total / count
    if np.ptp(means) <= 1e-12 * np.abs(means).max():  # the variance between problems is unknown
        return Summary(int(count.sum()), len(count), float(means[0]), -np.inf, np.inf)
    resampled = [
        (draws @ total) / (draws @ count) for draws in resampled_counts(len(count), resamples, seed)
    ]
    low, high = np.quantile(np.concatenate(resampled), [0.025, 0.975])
    return Summary(
        int(count.sum()), len(count), float(total.sum() / count.sum()), float(low), float(high)
    )


def _cohens_d(values: np.ndarray, others: np.ndarray) -> float:
    freedom = len(values) + len(others) - 2
    squares = sum(float(np.sum((x - x.mean()) ** 2)) for x in (values, others))
    if freedom < 1 or squares == 0:
        return _NAN
    return float((values.mean() - others.mean()) / np.sqrt(squares / freedom))


def _mean_superiority(group: Group, other: Group, ids: np.ndarray) -> float:
    one, two = _by_problem(group, ids), _by_problem(other, ids)
    return float(np.mean([superiority(x, y) for x, y in zip(one, two, strict=True)]))


def _by_problem(group: Group, ids: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(group.problems, kind="stable")
    problems, values = group.problems[order], group.values[order]
    starts, ends = (np.searchsorted(problems, ids, side=side) for side in ("left", "right"))
    return [values[start:end] for start, end in zip(starts, ends, strict=True)]
