"""Whether two runs differ on the same problems by more than chance. NumPy in float64 on the
host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entropy_rl.stats.pass_at_k import check_resampling, check_values, resampled_means


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
) -> PairedTest:
    """Mean difference of two runs on the same problems, tested by a bootstrap over problems.

    What makes a problem hard for both runs cancels, so this is sharper than to compare two
    intervals. With d the differences of m problems and d* a resample of them, drawn as in
    `bootstrap_interval`:

    p = (1 + #{√(m / (m-1)) |mean d* - mean d| >= |mean d|}) / (1 + resamples), but at least 2^(1-n)

    √(m / (m-1)) makes up for a resample's spread being too small by that. 2^(1-n) is what n
    problems that differ, all with one sign, would say: five or fewer are never significant at 0.05,
    and one says nothing. The interval is mean d ± the like quantile of the deviations, made wider
    where so few problems differ. So it leaves out 0 exactly where p <= 1 - confidence, and is
    unbounded where no data could do so.

    Of four candidates, how often p <= 0.05 came out for two equal runs, which should be 0.05:
    success with p ~ Beta(0.3, 1) on each problem, 64 samples, 20,000 simulations (standard error
    0.0015):

      problems                30                        83                       500
      k                 1     8    32    64       1     8    32    64       1     8    32    64
      centered mean  0.060 0.064 0.061 0.014   0.050 0.056 0.055 0.038   0.053 0.052 0.049 0.046
      times √(..)   0.060 0.059 0.053 0.014   0.050 0.054 0.053 0.038   0.052 0.052 0.049 0.046
      bootstrap-t   0.040 0.032 0.010 0.007   0.046 0.048 0.039 0.035   0.052 0.051 0.049 0.053
      sign flips    0.042 0.051 0.050 0.002   0.044 0.053 0.052 0.019   0.050 0.051 0.049 0.039

    The second is this one: nearest to 0.05 among the bootstraps, if above it with 30 problems (with
    10 up to 0.08, and 0.10 for runs of equal mean that are unlike on the problems). Bootstrap-t
    lacks power: with 30 problems and k = 32 it saw 0.06 of the gains where this saw 0.21.
    `sign_flip_p_value` is closest and a check. All are careful at k = samples, where pass@k is 0 or
    1 and few problems differ. Percentile intervals left out the true 0 in up to 0.10 (30 problems,
    k = 32).

    Args:
      values: f64[problems, ...] of the one run. All columns share the resamples.
      baseline: f64[problems, ...] of the other, of the same problems in the same order.
      confidence: As in `bootstrap_interval`.
      resamples: As in `bootstrap_interval`.
      seed: As in `bootstrap_interval`.

    Returns:
      Mean of values - baseline, low and high end, and the two-sided p-value of "no difference",
      each f64[...]. Runs that agree on every problem have the interval [0, 0] and p = 1.

    Raises:
      ValueError: The shapes differ; or as `bootstrap_interval`.
    """
    differences = _differences("paired_bootstrap", values, baseline)
    check_resampling("paired_bootstrap", confidence, resamples)
    problems = len(differences)
    mean = differences.mean(axis=0)
    deviations = np.abs(resampled_means(differences - mean, resamples, seed))
    deviations *= np.sqrt(problems / max(problems - 1, 1))
    # What was observed counts as one more resample: an infinite one, to be the last that an end
    # leaves out.
    deviations = np.concatenate([np.full((1, *mean.shape), np.inf), deviations])
    # Where a problem has no difference, its sign says nothing.
    least = np.minimum(2.0 ** (1 - np.count_nonzero(differences, axis=0)), 1.0)
    p_value = np.mean(deviations >= np.abs(mean) - _rounding(differences), axis=0)
    reach = np.sort(deviations, axis=0)[-1 - int((1 - confidence) * len(deviations))]
    if 2.0 ** (1 - problems) > 1 - confidence:
        reach = np.full(mean.shape, np.inf)
    reach = np.where((differences == 0).all(axis=0), 0.0, reach)
    low, high = mean - reach, mean + reach
    # Few differences have an interval of their own, which must not say more than their signs do.
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
) -> PairedTest:
    """Mean difference of two methods over training seeds and problems, tested by a bootstrap over
    both.

    All seeds are measured on the same problems: what a problem adds to the difference does not
    average out over seeds, nor what a seed adds over problems. So seeds are drawn first and then
    problems, the same for all seeds. With dₛᵢ the differences of S seeds and P problems, d their
    mean, dₛ and dᵢ those of a seed and of a problem, wₛ and vᵢ how often each was drawn, over S and
    over P, and χ² with S - 1 degrees of freedom,

    d* - d = f (√(S / χ²) Σₛ wₛ (dₛ - d) + √(P / (P-1)) Σᵢ vᵢ (dᵢ - d))
    f² = max(Q_S + Q_P - Q, Q_S, Q_P) / (Q_S + Q_P)
    p = (1 + #{|d* - d| >= |d|}) / (1 + resamples)

    and the interval is d ± the quantile of |d* - d|: it leaves out 0 exactly where p <= 1 -
    confidence. √(S / χ²) is √(S / (S-1)), which makes up for a resample's spread being too small,
    times √((S-1) / χ²), which makes the part of the seeds Student's t: a few seeds do not tell how
    much seeds differ. What seeds and problems add only together, such as the luck of single
    samples, is in both parts and would be counted twice, in a draw of both at once three times
    (Owen, The pigeonhole bootstrap, 2007). f takes the second out again, by the mean squares Q_S,
    Q_P and Q of seeds, problems and what remains. One seed, or one problem, says nothing: its
    interval is unbounded.

    How often p <= 0.05 came out for two equal methods, which should be 0.05: normal effects of
    seeds, of problems and of both, with these standard deviations; 1000 simulations (standard error
    0.007):

      seeds  problems   0.03, 0.15, 0.4   0, 0.15, 0.4   0.03, 0, 0   0, 0, 0.4
        2      200           0.008            0.009         0.045       0.003
        3       60           0.018            0.011         0.042       0.012
        3      200           0.026            0.014         0.045       0.004
        8       60           0.040            0.040         0.055       0.026
        8      200           0.038            0.029         0.060       0.022

    Two or three seeds are careful where seeds hardly differ. Without f eight would be as well:
    0.020 and 0.006 at the two ends of the last line.

    Args:
      values: f64[seeds, problems] of the one method.
      baseline: f64[seeds, problems] of the other, for the same seeds and problems in the same
        order.
      confidence: As in `bootstrap_interval`.
      resamples: As in `bootstrap_interval`.
      seed: As in `bootstrap_interval`.

    Returns:
      Mean of values - baseline, low and high end, and the two-sided p-value of "no difference",
      each f64[].

    Raises:
      ValueError: The shapes do not fit, a value is not finite, or an argument is out of range.
    """
    differences = _differences("crossed_bootstrap", values, baseline)
    if differences.ndim != 2:
        raise ValueError(
            f"crossed_bootstrap: values of shape {differences.shape}; expected [seeds, problems]"
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
    # As in `paired_bootstrap`: what was observed counts as one more resample.
    deviations = np.append(deviations, np.inf)
    tolerance = 1e-12 * np.abs(differences).max()
    p_value = np.mean(deviations >= np.abs(mean) - tolerance)
    reach = np.sort(deviations)[-1 - int((1 - confidence) * len(deviations))]
    ends = np.array([mean - reach, mean + reach])
    if p_value > 1 - confidence:  # what rounding leaves of an end at 0
        ends = np.array([min(ends[0], 0.0), max(ends[1], 0.0)])
    return PairedTest(*map(np.asarray, (mean, *ends, p_value)))


def sign_flip_p_value(
    values: ArrayLike, baseline: ArrayLike, *, patterns: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Test whether two runs differ on the same problems, by flipping signs: a permutation test.

    Were the runs the same, each problem's difference would be as likely with the other sign. p is
    the share of sign patterns, the observed one included, whose |mean| is at least the observed
    one. It is exact for any number of problems. Source: Fisher, The Design of Experiments (1935),
    section 21.

    Args:
      values: f64[problems, ...] of the one run. All columns share the patterns.
      baseline: f64[problems, ...] of the other, of the same problems in the same order.
      patterns: All patterns are taken where these are no more, else so many at random.
      seed: Seed of the patterns.

    Returns:
      Two-sided p-value, f64[...], at least 2^(1-problems).

    Raises:
      ValueError: The shapes differ, no problems, a value that is not finite, or patterns < 1.
    """
    differences = _differences("sign_flip_p_value", values, baseline)
    if patterns < 1:
        raise ValueError(f"sign_flip_p_value: patterns={patterns!r} is not allowed; patterns >= 1")
    problems = len(differences)
    # A pattern and its opposite have the same |mean|: those that leave the last sign alone stand
    # for both.
    if 2 ** (problems - 1) <= patterns:
        flipped = (np.arange(2 ** (problems - 1))[:, None] >> np.arange(problems)) & 1
    else:
        flipped = np.random.default_rng(seed).integers(
            0, 2, (1 + patterns, problems), dtype=np.int8
        )
        flipped[0] = 0  # what was observed
    means = np.abs(np.tensordot((1.0 - 2 * flipped) / problems, differences, axes=1))
    return np.mean(means >= means[0] - _rounding(differences), axis=0)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p-values for having made several tests: Holm's step-down.

    adjusted p₍ᵢ₎ = max over j <= i of min(1, (m - j + 1) p₍ⱼ₎), with p₍₁₎ <= ... <= p₍ₘ₎

    The probability of even one false rejection among all m stays below the level, however the tests
    depend on one another. Source: Scandinavian Journal of Statistics 6, 65-70 (1979).

    Args:
      p_values: f64[m].

    Returns:
      f64[m], in the order of `p_values`.

    Raises:
      ValueError: Not one axis, or a value outside [0, 1].
    """
    p_values = np.asarray(p_values, np.float64)
    if p_values.ndim != 1:
        raise ValueError(f"holm: p_values of shape {p_values.shape}; expected [m]")
    if not np.all((p_values >= 0) & (p_values <= 1)):  # NaN fails too
        raise ValueError(f"holm: p_values={p_values.tolist()} is not allowed; 0 <= p <= 1")
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1)


def _differences(where: str, values: ArrayLike, baseline: ArrayLike) -> np.ndarray:
    values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if values.shape != baseline.shape:
        raise ValueError(
            f"{where}: values of shape {values.shape} and baseline of shape {baseline.shape}; "
            "expected the same problems in both"
        )
    check_values(where, values - baseline)
    return values - baseline


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
    """f64[...]: means that are nearer to each other than this are equal. Counts give many equal
    ones.
    """
    return 1e-12 * np.abs(differences).max(axis=0)
