"""Paired tests of two runs on the same problems: bootstrap and permutation tests, Holm's
correction. NumPy in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entropy_rl.stats.pass_at_k import (
    block_rows,
    check_resampling,
    check_values,
    clopper_pearson_upper,
    resampled_means,
)

# With fewer problems that differ, a bootstrap says little about those that were not sampled.
_FEW_THAT_DIFFER = 10


class PairedTest(NamedTuple):
    """A mean difference, its interval and p-value; each f64[...], without the axis of the
    problems.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray


def paired_bootstrap(
    values: ArrayLike,
    baseline: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    is_fraction: bool = False,
) -> PairedTest:
    """Paired bootstrap test of the mean difference of two runs over the same problems.

    Pairing removes the variance between problems, so the test has more power than a comparison of
    two intervals. With d the differences of m problems, n of them not 0, and d* a resample of them
    as in `bootstrap_interval`:

    p = max((1 + #{√(m / (m-1)) |mean d* - mean d| >= |mean d|}) / (1 + resamples), 2^(1-n))

    √(m / (m-1)) corrects the variance of a resample, which is smaller than that of a sample by
    this factor squared. 2^(1-n) is the smallest p-value of a two-sided sign test on n nonzero
    differences: five or fewer are never significant at 0.05. The interval is mean d ± the quantile
    of the deviations at `confidence`. It excludes 0 exactly where p <= 1 - confidence: it is
    extended to 0 where n is too small for that, and unbounded where m is.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 16; the two
    corrections are this library's.

    Type I error at p <= 0.05 of this and three other tests, by 20,000 simulations of two equal runs
    (standard error 0.0015), with success rates p ~ Beta(0.3, 1) and 64 samples for each problem:

      problems                30                        83                       500
      k                 1     8    32    64       1     8    32    64       1     8    32    64
      centered mean  0.060 0.064 0.061 0.014   0.050 0.056 0.055 0.038   0.053 0.052 0.049 0.046
      times √(..)   0.060 0.059 0.053 0.014   0.050 0.054 0.053 0.038   0.052 0.052 0.049 0.046
      bootstrap-t   0.040 0.032 0.010 0.007   0.046 0.048 0.039 0.035   0.052 0.051 0.049 0.053
      sign flips    0.042 0.051 0.050 0.002   0.044 0.053 0.052 0.019   0.050 0.051 0.049 0.039

    The second line is this test. It is slightly liberal with 30 problems (0.08 with 10, and 0.10
    for runs of equal mean that differ on the problems), and more so at smaller levels, where p is
    too small by a factor of 2 to 4: take the p-value of `sign_flip_p_value`, which is nearest to
    the level, above all for `holm`. Bootstrap-t has less power: with 30 problems and k = 32 it
    found 0.06 of the gains, this test 0.21. All are conservative at k = 64, the number of samples,
    where pass@k is 0 or 1 and few problems differ. Percentile intervals exclude the true value 0 in
    up to 0.10 of the simulations (30 problems, k = 32).

    Args:
      values: f64[problems, ...] of the one run. All columns share the resamples.
      baseline: f64[problems, ...] of the other, of the same problems in the same order.
      confidence: As in `bootstrap_interval`.
      resamples: As in `bootstrap_interval`.
      seed: As in `bootstrap_interval`.
      is_fraction: Whether all possible values of both runs are in [0, 1].

    Returns:
      Mean of values - baseline, low and high end, and the two-sided p-value of "no difference",
      each f64[...]. Runs that agree on every problem have p = 1; their interval is unbounded, or
      for fractions ± (1 - (1 - confidence)^(1 / problems)), as in `clopper_pearson_upper`.

    Raises:
      ValueError: The shapes differ; or as `bootstrap_interval`.
    """
    differences = _differences("paired_bootstrap", values, baseline)
    check_resampling("paired_bootstrap", confidence, resamples)
    problems = len(differences)
    mean = differences.mean(axis=0)
    deviations = np.abs(resampled_means(differences - mean, resamples, seed))
    deviations *= np.sqrt(problems / max(problems - 1, 1))
    # The observed sample counts as one more resample. Its deviation is infinite here, so that it is
    # the last one to be excluded by the interval.
    deviations = np.concatenate([np.full((1, *mean.shape), np.inf), deviations])
    # A difference of 0 has no sign.
    least = np.minimum(2.0 ** (1 - np.count_nonzero(differences, axis=0)), 1.0)
    p_value = np.mean(deviations >= np.abs(mean) - _rounding(differences), axis=0)
    reach = np.sort(deviations, axis=0)[-1 - int((1 - confidence) * len(deviations))]
    if 2.0 ** (1 - problems) > 1 - confidence:
        reach = np.full(mean.shape, np.inf)
    if_equal = clopper_pearson_upper(0, problems, confidence=confidence) if is_fraction else np.inf
    reach = np.where((differences == 0).all(axis=0), if_equal, reach)
    low, high = mean - reach, mean + reach
    # With few nonzero differences the interval must contain 0, as the sign test is not significant.
    few = least > 1 - confidence
    ends = np.stack(
        [np.where(few, np.minimum(low, 0), low), np.where(few, np.maximum(high, 0), high)]
    )
    ends[np.abs(ends) <= _rounding(differences)] = 0
    return PairedTest(mean, *ends, np.maximum(p_value, least))


def crossed_bootstrap(
    values: ArrayLike,
    baseline: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    is_fraction: bool = False,
) -> PairedTest:
    """Bootstrap test of the mean difference of two methods over training seeds and problems.

    Seeds and problems are crossed random effects: the effect of a problem does not average out
    over seeds, nor that of a seed over problems. Both are resampled, the same problems for all
    seeds. With dₛᵢ the differences of S seeds and P problems, d their mean, dₛ and dᵢ the means of
    a seed and of a problem, wₛ and vᵢ the fractions of the draws that are seed s and problem i, and
    χ² with S - 1 degrees of freedom,

    d* - d = f (√(S / χ²) Σₛ wₛ (dₛ - d) + √(P / (P-1)) Σᵢ vᵢ (dᵢ - d))
    f² = max(Q_S + Q_P - Q, Q_S, Q_P) / (Q_S + Q_P)
    p = (1 + #{|d* - d| >= |d|}) / (1 + resamples)

    and the interval is d ± the quantile of |d* - d|, which excludes 0 exactly where p <= 1 -
    confidence. √(S / χ²) is √(S / (S-1)), the correction of the variance of a resample, times
    √((S-1) / χ²), which gives the part of the seeds Student's t distribution, as the variance of
    few seeds is uncertain. The interaction of seeds and problems, such as the noise of single
    samples, is in both parts and would be counted twice; in a joint draw of both, three times
    (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007). f removes the second
    count, by the mean squares Q_S, Q_P and Q of seeds, problems and interaction. With one seed or
    one problem the interval is unbounded.

    Where only n < 10 of the P problems differ, in any seed, the bootstrap hardly varies, but other
    problems may differ as well. Of fractions, an end of the interval that is not on the other side
    of 0 is then at least as far as d ± (u - n / P), with u the bound on the fraction of problems
    that differ (`clopper_pearson_upper`); without a bound on the values it is infinite.

    Type I error at p <= 0.05, by 1000 simulations of two equal methods (standard error 0.007), with
    normal effects of seeds, of problems and of their interaction with these standard deviations:

      seeds  problems   0.03, 0.15, 0.4   0, 0.15, 0.4   0.03, 0, 0   0, 0, 0.4
        2      200           0.008            0.009         0.045       0.003
        3       60           0.018            0.011         0.042       0.012
        3      200           0.026            0.014         0.045       0.004
        8       60           0.040            0.040         0.055       0.026
        8      200           0.038            0.029         0.060       0.022

    With two or three seeds the test is conservative where seeds hardly differ. Without f it would
    be so with eight: 0.020 and 0.006 at the two ends of the last line.

    Args:
      values: f64[seeds, problems] of the one method.
      baseline: f64[seeds, problems] of the other, for the same seeds and problems in the same
        order.
      confidence: As in `bootstrap_interval`.
      resamples: As in `bootstrap_interval`.
      seed: As in `bootstrap_interval`.
      is_fraction: Whether all possible values of both methods are in [0, 1].

    Returns:
      Mean of values - baseline, low and high end, and the two-sided p-value of "no difference",
      each f64[].

    Raises:
      ValueError: The shapes do not fit, a value is not finite, or an argument is out of range.
    """
    differences = _differences("crossed_bootstrap", values, baseline)
    if differences.ndim != 2:
        raise ValueError(
            f"crossed_bootstrap: values must have shape [seeds, problems], got {differences.shape}"
        )
    check_resampling("crossed_bootstrap", confidence, resamples)
    seeds, problems = differences.shape
    mean = differences.mean()
    if seeds == 1 or problems == 1:
        return PairedTest(*map(np.asarray, (mean, -np.inf, np.inf, 1.0)))
    rng = np.random.default_rng(seed)
    of_seeds = resampled_means(differences.mean(axis=1) - mean, resamples, rng)
    of_problems = resampled_means(differences.mean(axis=0) - mean, resamples, rng)
    of_seeds *= np.sqrt(seeds / rng.chisquare(seeds - 1, resamples))
    deviations = np.abs(of_seeds + np.sqrt(problems / (problems - 1)) * of_problems)
    deviations *= _once_counted(differences)
    # As in `paired_bootstrap`, the observed sample counts as one more resample.
    deviations = np.append(deviations, np.inf)
    tolerance = 1e-12 * np.abs(differences).max()
    p_value = np.mean(deviations >= np.abs(mean) - tolerance)
    reach = np.sort(deviations)[-1 - int((1 - confidence) * len(deviations))]
    ends = np.array([mean - reach, mean + reach])
    if p_value > 1 - confidence:  # against rounding of an end at 0
        ends = np.array([min(ends[0], 0.0), max(ends[1], 0.0)])
    differ = int(np.count_nonzero(differences.any(axis=0)))
    if differ < min(_FEW_THAT_DIFFER, problems):
        upper = clopper_pearson_upper(differ, problems, confidence=confidence)
        reach = upper - differ / problems if is_fraction else np.inf
        # An end beyond 0 stays: the interval excludes 0 exactly where p <= 1 - confidence.
        if ends[0] <= 0:
            ends[0] = min(ends[0], mean - reach)
        if ends[1] >= 0:
            ends[1] = max(ends[1], mean + reach)
    return PairedTest(*map(np.asarray, (mean, *ends, p_value)))


def sign_flip_p_value(
    values: ArrayLike, baseline: ArrayLike, *, patterns: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Sign-flip permutation test of two runs on the same problems.

    p = #{s : |mean(s d)| >= |mean d|} / #{s},   s ∈ {-1, 1}^problems

    Under the null hypothesis the difference of each problem is symmetric about 0. The test is exact
    for any number of problems. Source: Fisher, The Design of Experiments (1935), section 21.

    Args:
      values: f64[problems, ...] of the one run. All columns share the patterns.
      baseline: f64[problems, ...] of the other, of the same problems in the same order.
      patterns: Sign patterns: all of them if there are no more, else random ones.
      seed: Seed of the patterns.

    Returns:
      Two-sided p-value, f64[...], at least 2^(1-problems).

    Raises:
      ValueError: The shapes differ, no problems, a value that is not finite, or patterns < 1.
    """
    differences = _differences("sign_flip_p_value", values, baseline)
    if patterns < 1:
        raise ValueError(f"sign_flip_p_value: patterns must be >= 1, got {patterns!r}")
    problems = len(differences)
    # A pattern and its opposite have the same |mean|, so the last sign is fixed.
    if 2 ** (problems - 1) <= patterns:
        flipped = [(np.arange(2 ** (problems - 1))[:, None] >> np.arange(problems)) & 1]
    else:
        flipped = _random_flips(1 + patterns, problems, np.random.default_rng(seed))
    means = np.concatenate(
        [np.abs(np.tensordot((1.0 - 2 * f) / problems, differences, axes=1)) for f in flipped]
    )
    return np.mean(means >= means[0] - _rounding(differences), axis=0)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p-values for multiple tests: Holm's step-down procedure.

    adjusted p₍ᵢ₎ = max over j <= i of min(1, (m - j + 1) p₍ⱼ₎), with p₍₁₎ <= ... <= p₍ₘ₎

    It controls the family-wise error rate under any dependence of the tests. Source: Holm,
    Scandinavian Journal of Statistics 6, 65-70 (1979).

    Args:
      p_values: f64[m].

    Returns:
      f64[m], in the order of `p_values`.

    Raises:
      ValueError: Not one axis, or a value outside [0, 1].
    """
    p_values = np.asarray(p_values, np.float64)
    if p_values.ndim != 1:
        raise ValueError(f"holm: p_values must have shape [m], got {p_values.shape}")
    if not np.all((p_values >= 0) & (p_values <= 1)):  # NaN fails too
        raise ValueError(f"holm: p_values must be from 0 to 1, got {p_values.tolist()}")
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1)


def _differences(where: str, values: ArrayLike, baseline: ArrayLike) -> np.ndarray:
    values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if values.shape != baseline.shape:
        raise ValueError(
            f"{where}: values and baseline must have the same shape, got {values.shape} and "
            f"{baseline.shape}"
        )
    check_values(where, values - baseline)
    return values - baseline


def _random_flips(patterns: int, problems: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield int8[rows, problems], some patterns at a time; the first has the observed signs."""
    for i, rows in enumerate(block_rows(problems, patterns)):
        flipped = rng.integers(0, 2, (rows, problems), dtype=np.int8)
        if i == 0:
            flipped[0] = 0
        yield flipped


def _once_counted(differences: np.ndarray) -> float:
    """The factor f of `crossed_bootstrap`."""
    seeds, problems = differences.shape
    of_seeds, of_problems = (differences.mean(axis=axis, keepdims=True) for axis in (1, 0))
    rest = differences - of_seeds - of_problems + differences.mean()
    square = rest.var() * seeds * problems / ((seeds - 1) * (problems - 1))
    squares = problems * of_seeds.var(ddof=1), seeds * of_problems.var(ddof=1)
    both = sum(squares)
    return float(np.sqrt(max(both - square, *squares) / both)) if both else 1.0


def _rounding(differences: np.ndarray) -> np.ndarray:
    """Tolerance f64[...] within which means are equal; means of counts have many ties."""
    return 1e-12 * np.abs(differences).max(axis=0)
