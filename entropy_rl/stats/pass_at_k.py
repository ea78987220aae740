"""pass@k and its uncertainty.

NumPy in float64 on the host: these are statistics of an evaluation, a few numbers for each problem,
and JAX computes in float32 unless told otherwise, which loses the digits of a small pass@k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


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
            raise ValueError(f"pass_at_k: {name} has dtype {x.dtype}; expected whole numbers")
    n, c, k = np.broadcast_arrays(n, c, k)
    _require_all((c >= 0) & (c <= n), "0 <= c <= n", n, c, k)
    _require_all((k >= 1) & (k <= n), "1 <= k <= n", n, c, k)
    # A few distinct cases stand for many problems.
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
    n: ArrayLike,
    c: ArrayLike,
    ks: Sequence[int] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PassAtKCurve:
    """Average pass@k over problems for several k.

    Args:
      n: int[] or int[problems], samples drawn for each problem.
      c: int[problems], correct ones of them.
      ks: The k; by default 1, 2, 4, ... up to the smallest n.
      confidence: Coverage of the intervals.
      resamples: Bootstrap resamples.
      seed: Seed of the resampling.

    Returns:
      The curve, with a `bootstrap_interval` over problems at each k.

    Raises:
      ValueError: As `pass_at_k` and `bootstrap_interval`.
    """
    n, c = np.broadcast_arrays(n, c)
    if c.ndim != 1 or not c.size:
        raise ValueError(f"pass_at_k_curve: n and c give shape {c.shape}; expected [problems]")
    if ks is None:
        ks = [2**i for i in range(int(n.min()).bit_length())]
    values = pass_at_k(n[:, None], c[:, None], np.asarray(ks)[None, :])
    interval = bootstrap_interval(values, confidence=confidence, resamples=resamples, seed=seed)
    return PassAtKCurve(np.asarray(ks, np.int64), *interval)


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean over problems.

    Problems are drawn with replacement, as they are what another test set would have had others of;
    the spread of the samples of one problem is part of its value. The quantiles of the resampled
    means are the ends. With few problems such intervals are somewhat too narrow; with one they have
    no width.

    Args:
      values: f64[problems, ...], a statistic for each problem. All columns share the resamples.
      confidence: Coverage, 0 < confidence < 1.
      resamples: Bootstrap resamples.
      seed: Seed of the resampling: the same seed gives the same interval.

    Returns:
      Mean, low and high end, each f64[...].

    Raises:
      ValueError: No problems, a value that is not finite, or an argument out of range.
    """
    values = np.asarray(values, np.float64)
    check_values("bootstrap_interval", values)
    check_resampling("bootstrap_interval", confidence, resamples)
    means = resampled_means(values, resamples, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Interval(values.mean(axis=0), low, high)


def resampled_means(
    values: np.ndarray, resamples: int, seed: int | np.random.Generator
) -> np.ndarray:
    """f64[resamples, ...]: means of the problems drawn with replacement."""
    problems = len(values)
    # How often each problem was drawn says all about a resample, and needs no [resamples, problems,
    # ...].
    draws = np.random.default_rng(seed).multinomial(
        problems, np.full(problems, 1 / problems), size=resamples
    )
    return np.tensordot(draws / problems, values, axes=1)


def check_values(where: str, values: np.ndarray) -> None:
    if values.ndim < 1 or not len(values):
        raise ValueError(f"{where}: values of shape {values.shape}; expected [problems, ...]")
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: a value is not finite; leave out problems without a value")


def check_resampling(where: str, confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"{where}: confidence={confidence!r} is not allowed; 0 < confidence < 1")
    if resamples < 1:
        raise ValueError(f"{where}: resamples={resamples!r} is not allowed; resamples >= 1")


def _require_all(
    condition: np.ndarray, rule: str, n: np.ndarray, c: np.ndarray, k: np.ndarray
) -> None:
    if not condition.all():
        at = np.unravel_index(np.argmin(condition), condition.shape)
        raise ValueError(f"pass_at_k: n={n[at]}, c={c[at]}, k={k[at]} is not allowed; {rule}")
