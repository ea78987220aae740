"""Unbiased pass@k and confidence intervals over problems.

NumPy in float64 on the host: float32, the default of JAX, loses the digits of a small pass@k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, stdtrit

_BLOCK = 2**20  # numbers of a block of resamples


class Interval(NamedTuple):
    """An estimate and its confidence interval; each f64[...], without the axis of the problems."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


class PassAtKCurve(NamedTuple):
    """pass@k over k, averaged over problems, with confidence intervals."""

    ks: np.ndarray  # int64[K]
    estimate: np.ndarray  # f64[K]
    low: np.ndarray  # f64[K]
    high: np.ndarray  # f64[K]


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> np.ndarray:
    """Estimate the probability that at least one of k samples is correct.

    pass@k = 1 - C(n - c, k) / C(n, k)

    for c correct ones of n samples; unbiased, unlike 1 - (1 - c/n)ᵏ. Source: Eq. 1 of
    https://arxiv.org/abs/2107.03374. Averages over problems are the caller's.

    Args:
      n: int[...] samples drawn.
      c: int[...] correct ones of them.
      k: int[...] samples allowed. The three broadcast.

    Returns:
      f64[...].

    Raises:
      ValueError: Not whole numbers, or not 0 <= c <= n and 1 <= k <= n.
    """
    n, c, k = (np.asarray(x) for x in (n, c, k))
    for name, x in (("n", n), ("c", c), ("k", k)):
        if not np.issubdtype(x.dtype, np.integer):
            raise ValueError(f"pass_at_k: {name} must be whole numbers, got dtype {x.dtype}")
    n, c, k = np.broadcast_arrays(n, c, k)
    _require_all((c >= 0) & (c <= n), "0 <= c <= n", n, c, k)
    _require_all((k >= 1) & (k <= n), "1 <= k <= n", n, c, k)
    # Compute each distinct case once.
    cases, inverse = np.unique(
        np.stack([n, c, k], axis=-1).reshape(-1, 3), axis=0, return_inverse=True
    )
    values = np.array([_pass_at_k(*map(int, case)) for case in cases])
    return values[inverse.reshape(n.shape)]


def _pass_at_k(n: int, c: int, k: int) -> float:
    if n - c < k:
        return 1.0
    if c == 0:
        return 0.0
    # C(n-c, k) / C(n, k) = Π_{i<k} (1 - c / (n-i)), and the same with c and k exchanged: take the
    # shorter product. Sums of log1p keep all digits; differences of log-gammas would lose seven at
    # n = 1e5.
    short, long = min(c, k), max(c, k)
    return float(-np.expm1(np.sum(np.log1p(-long / (n - np.arange(short, dtype=np.float64))))))


def pass_at_k_curve(
    n: ArrayLike, c: ArrayLike, ks: Sequence[int] | None = None, *, confidence: float = 0.95
) -> PassAtKCurve:
    """Average pass@k over problems for several k.

    Args:
      n: int[] or int[problems], samples drawn for each problem.
      c: int[problems], correct ones of them.
      ks: The k; by default 1, 2, 4, ... up to the smallest n.
      confidence: Coverage of the intervals.

    Returns:
      The curve, with a `wilson_interval` over problems at each k.

    Raises:
      ValueError: As `pass_at_k` and `wilson_interval`, or a problem without samples.
    """
    n, c = np.broadcast_arrays(n, c)
    if c.ndim != 1 or not c.size:
        raise ValueError(f"pass_at_k_curve: n and c must have shape [problems], got {c.shape}")
    if n.min() < 1:
        raise ValueError(f"pass_at_k_curve: n must be >= 1 for every problem, got {n.min()}")
    if ks is None:
        ks = [2**i for i in range(int(n.min()).bit_length())]
    elif np.ndim(ks) != 1:
        raise ValueError(f"pass_at_k_curve: ks must be a list, got {ks!r}")
    values = pass_at_k(n[:, None], c[:, None], np.asarray(ks)[None, :])
    return PassAtKCurve(np.asarray(ks, np.int64), *wilson_interval(values, confidence=confidence))


def wilson_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a mean of rates, such as pass@k, over problems.

    With m the mean of P values in [0, 1], t the quantile of Student's distribution with P - 1
    degrees of freedom, and D the design effect, the variance relative to that of P coin flips,

    D = (Σᵢ (vᵢ - m)² + 1/4) / (P m (1 - m) + 1/4),   q = t² D / P
    (m + q/2 ± √(q m (1 - m) + q²/4)) / (1 + q)

    It is the set of means μ with |m - μ| ≤ t √(D μ (1 - μ) / P). Source: Wilson, JASA 22 (1927);
    the effective sample size P / D and the t quantile as for surveys, Korn and Graubard, Survey
    Methodology 24 (1998). 1/4 is the variance of one fair coin, which moves D to 1 where the values
    hardly vary: if all problems are solved, the variance of the values is 0, but a problem that is
    not solved may still be among the next ones. Then the interval is that of P successes in P
    trials.

    Coverage of 95% intervals for success rates p ~ Beta(a, b) of the problems, with 64 samples of
    each; 4000 simulations, standard error 0.004, by `python benchmarks/interval_coverage.py
    --bootstrap`. In parentheses: the percentile bootstrap, 1500 simulations.

      problems, Beta       k = 1          8             32             60             64
           30, (1, 1)  0.955 (0.941)  0.952 (0.899)  0.970 (0.696)  0.926 (0.385)  0.926 (0.385)
         30, (0.3, 1)  0.954 (0.930)  0.953 (0.941)  0.956 (0.932)  0.960 (0.933)  0.960 (0.933)
       30, (0.1, 0.6)  0.948 (0.908)  0.955 (0.929)  0.955 (0.937)  0.956 (0.935)  0.956 (0.935)
          200, (1, 1)  0.947 (0.937)  0.948 (0.932)  0.945 (0.904)  0.925 (0.878)  0.965 (0.803)
        200, (0.3, 1)  0.951 (0.948)  0.950 (0.948)  0.953 (0.941)  0.947 (0.939)  0.946 (0.937)
      200, (0.1, 0.6)  0.947 (0.947)  0.941 (0.951)  0.943 (0.947)  0.943 (0.945)  0.941 (0.948)

    Args:
      values: f64[problems, ...] in [0, 1], a rate for each problem.
      confidence: Coverage, 0 < confidence < 1.

    Returns:
      Mean, low and high end, each f64[...]; 0 <= low <= mean <= high <= 1. With one problem the
      interval is [0, 1].

    Raises:
      ValueError: No problems, a value outside of [0, 1], or an argument out of range.
    """
    values = np.asarray(values, np.float64)
    check_values("wilson_interval", values)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"wilson_interval: values must be from 0 to 1, got {_outside(values)}")
    _check_confidence("wilson_interval", confidence)
    problems, mean = len(values), values.mean(axis=0)
    if problems == 1:
        return Interval(mean, np.zeros_like(mean), np.ones_like(mean))
    squares = np.sum(np.square(values - mean), axis=0)
    design_effect = (squares + 0.25) / (problems * mean * (1 - mean) + 0.25)
    q = stdtrit(problems - 1, (1 + confidence) / 2) ** 2 * design_effect / problems
    reach = np.sqrt(q * mean * (1 - mean) + q**2 / 4)
    low, high = ((mean + q / 2 + sign * reach) / (1 + q) for sign in (-1, 1))
    # The bounds are for rounding alone.
    return Interval(mean, np.clip(low, 0, mean), np.clip(high, mean, 1))


def clopper_pearson_upper(count: int, problems: int, *, confidence: float = 0.95) -> float:
    """Upper confidence bound of a fraction that `count` of `problems` problems belong to.

    If the fraction were larger, so few problems would be found with probability below
    1 - confidence. For count = 0 it is 1 - (1 - confidence)^(1 / problems). Source: Clopper and
    Pearson, Biometrika 26 (1934), one-sided.
    """
    if count == problems:
        return 1.0
    return float(betaincinv(count + 1, problems - count, confidence))


def bootstrap_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    is_fraction: bool = False,
) -> Interval:
    """Percentile bootstrap interval of the mean over problems.

    Problems are resampled with replacement, and the ends are quantiles of the resampled means. The
    variance between samples of one problem is part of that between problems. Use it for lengths,
    entropies and other unbounded values. With few problems the interval is too narrow: those of 95%
    cover the mean of log-normal values (σ = 0.5) in 0.48, 0.77, 0.86, 0.90, 0.92 and 0.94 of the
    simulations with 2, 4, 8, 16, 30 and 64 problems (`benchmarks/interval_coverage.py --few`).
    For rates use `wilson_interval`: where nearly all values are 0 or 1, this interval is far too
    narrow.

    Args:
      values: f64[problems, ...], a statistic for each problem. All columns share the resamples.
      confidence: Coverage, 0 < confidence < 1.
      resamples: Bootstrap resamples.
      seed: Seed of the resampling: the same seed gives the same interval.
      is_fraction: Whether all possible values are in [0, 1].

    Returns:
      Mean, low and high end, each f64[...]. With one problem the interval is unbounded. Where all
      values are equal, which says nothing about their variance, it is unbounded as well, or for
      fractions the mean ± (1 - (1 - confidence)^(1 / problems)), cut at 0 and 1.

    Raises:
      ValueError: No problems, a value that is not finite, or an argument out of range.
    """
    values = np.asarray(values, np.float64)
    check_values("bootstrap_interval", values)
    check_resampling("bootstrap_interval", confidence, resamples)
    if len(values) == 1:  # the variance between problems is unknown
        unbounded = np.full(values.shape[1:], np.inf)
        return Interval(values.mean(axis=0), -unbounded, unbounded)
    means = resampled_means(values, resamples, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    mean, equal = values.mean(axis=0), (values == values[0]).all(axis=0)
    reach = clopper_pearson_upper(0, len(values), confidence=confidence) if is_fraction else np.inf
    low, high = np.where(equal, mean - reach, low), np.where(equal, mean + reach, high)
    if is_fraction:
        low, high = np.maximum(low, 0), np.minimum(high, 1)
    return Interval(mean, low, high)


def resampled_means(
    values: np.ndarray, resamples: int, seed: int | np.random.Generator
) -> np.ndarray:
    """f64[resamples, ...]: means of the problems drawn with replacement."""
    problems = len(values)
    means = [
        np.tensordot(draws / problems, values, axes=1)
        for draws in resampled_counts(problems, resamples, seed)
    ]
    return np.concatenate(means)


def resampled_counts(
    problems: int, resamples: int, seed: int | np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield int64[rows, problems]: how often each resample has each problem, some at a time."""
    rng, even = np.random.default_rng(seed), np.full(problems, 1 / problems)
    for rows in block_rows(problems, resamples):
        yield rng.multinomial(problems, even, size=rows)


def block_rows(problems: int, resamples: int) -> Iterator[int]:
    """Yield the rows of the blocks in which an array [resamples, problems] is made."""
    # A generator fills rows of a multiple of 4 bytes from whole words: blocks have the same bits as
    # the whole array.
    most = max(_BLOCK // problems // 4, 1) * 4
    for start in range(0, resamples, most):
        yield min(most, resamples - start)


def check_values(where: str, values: np.ndarray) -> None:
    """Check that there are problems and that all values are finite.

    Raises:
      ValueError: There is none, or one is not.
    """
    if values.ndim < 1 or not len(values):
        raise ValueError(
            f"{where}: values must have shape [problems, ...] with problems, got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: a value is not finite; leave out problems without a value")


def check_resampling(where: str, confidence: float, resamples: int) -> None:
    """Check 0 < confidence < 1 and resamples >= 1.

    Raises:
      ValueError: One is out of range.
    """
    _check_confidence(where, confidence)
    if resamples < 1:
        raise ValueError(f"{where}: resamples must be >= 1, got {resamples!r}")


def _check_confidence(where: str, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"{where}: confidence must be > 0 and < 1, got {confidence!r}")


def _outside(values: np.ndarray) -> float:
    return float(values[(values < 0) | (values > 1)][0])


def _require_all(
    condition: np.ndarray, rule: str, n: np.ndarray, c: np.ndarray, k: np.ndarray
) -> None:
    if not condition.all():
        at = np.unravel_index(np.argmin(condition), condition.shape)
        raise ValueError(f"pass_at_k: must be {rule}, got n={n[at]}, c={c[at]}, k={k[at]}")
