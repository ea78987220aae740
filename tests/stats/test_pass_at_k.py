"""pass@k against exact fractions, enumeration and brute force; bootstrap intervals."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from entropy_rl.stats.pass_at_k import (
    bootstrap_interval,
    pass_at_k,
    pass_at_k_curve,
    wilson_interval,
)


def exact(n, c, k):
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_pass_at_k_equals_exact_fractions_for_all_small_cases(n):
    c, k = np.arange(n + 1)[:, None], np.arange(1, n + 1)
    expected = [[float(exact(n, i, j)) for j in range(1, n + 1)] for i in range(n + 1)]
    np.testing.assert_allclose(pass_at_k(n, c, k), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "n, c, k",
    [
        (10**5, 1, 1),
        (10**5, 3, 256),
        (10**5, 700, 100),
        (10**5, 40_000, 3),
        (10**5, 2, 50_000),
        (10**6, 5, 9),
    ],
)
def test_pass_at_k_keeps_its_digits_for_many_samples(n, c, k):
    # C(n-c, k) / C(n, k) is the same with c and k exchanged; the shorter product is exact and
    # quick.
    short, long = sorted((c, k))
    miss = Fraction(1)
    for i in range(short):
        miss *= Fraction(n - long - i, n - i)
    assert float(pass_at_k(n, c, k)) == pytest.approx(float(1 - miss), rel=1e-12)


def test_pass_at_k_is_finite_and_monotone_up_to_k_of_all_of_many_samples():
    n = 10**5
    ks = np.array([1, 2, 10, 1000, 50_000, 99_999, n])
    values = pass_at_k(n, np.array([0, 1, 7, 5000, 50_000, 99_999, n])[:, None], ks)
    assert ((values >= 0) & (values <= 1)).all()  # NaN is neither
    assert (np.diff(values, axis=0) >= 0).all() and (np.diff(values, axis=1) >= 0).all()
    np.testing.assert_allclose(
        values[1], ks / n, rtol=1e-12
    )  # one correct sample: is it among the k?
    np.testing.assert_array_equal(values[:, -1], [0, 1, 1, 1, 1, 1, 1])


def test_pass_at_k_equals_brute_force_over_subsets():
    n, c = 7, 3
    for k in range(1, n + 1):
        hits = [any(i < c for i in subset) for subset in itertools.combinations(range(n), k)]
        assert float(pass_at_k(n, c, k)) == pytest.approx(np.mean(hits), rel=1e-14)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_pass_at_k_is_unbiased(p):
    n, c = 12, np.arange(13)
    probability = np.array([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    for k in (1, 3, 8, 12):
        assert probability @ pass_at_k(n, c, k) == pytest.approx(1 - (1 - p) ** k, rel=1e-12)


def test_pass_at_k_has_exact_ends():
    np.testing.assert_array_equal(pass_at_k(8, [0, 6, 8], 3), [0, 1, 1])
    # Between the ends, log1p and expm1 differ by a last digit from one processor to another.
    np.testing.assert_allclose(pass_at_k(8, 5, 3), 1 - 1 / 56, rtol=3e-16)
    assert not np.signbit(pass_at_k(8, 0, 3))
    np.testing.assert_allclose(pass_at_k(8, np.arange(9), 1), np.arange(9) / 8, rtol=1e-15)


def test_pass_at_k_broadcasts_and_keeps_the_shape():
    values = pass_at_k(np.array([8, 16])[:, None, None], np.array([2, 2, 3])[:, None], [1, 2, 4, 8])
    assert values.shape == (2, 3, 4)
    assert values[1, 2, 3] == pytest.approx(float(exact(16, 3, 8)))
    assert pass_at_k(8, 1, 1).shape == ()
    assert pass_at_k(8, np.zeros(0, int), 1).shape == (0,)


@pytest.mark.parametrize(
    "n, c, k, message",
    [
        (4, 2, 5, "must be 1 <= k <= n, got n=4, c=2, k=5"),
        (4, 2, 0, "got n=4, c=2, k=0"),
        (4, [1, 5], 2, "must be 0 <= c <= n, got n=4, c=5, k=2"),
        (4, -1, 2, "c=-1"),
        (4, 0.5, 2, "c must be whole numbers, got dtype float64"),
    ],
)
def test_pass_at_k_refuses_impossible_counts(n, c, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


# --- intervals


def test_the_curve_takes_powers_of_two_and_averages_over_problems():
    c = np.array([0, 1, 5, 10])
    curve = pass_at_k_curve(10, c)
    np.testing.assert_array_equal(curve.ks, [1, 2, 4, 8])
    np.testing.assert_allclose(
        curve.estimate, [np.mean([float(exact(10, int(i), k)) for i in c]) for k in (1, 2, 4, 8)]
    )
    assert (curve.low <= curve.estimate).all() and (curve.estimate <= curve.high).all()
    np.testing.assert_array_equal(pass_at_k_curve([16, 8], [1, 1]).ks, [1, 2, 4, 8])
    np.testing.assert_array_equal(pass_at_k_curve(10, c, ks=[3, 10]).ks, [3, 10])
    with pytest.raises(ValueError, match=r"^pass_at_k_curve: n must be >= 1 for every problem, "):
        pass_at_k_curve([8, 0], [1, 0])
    with pytest.raises(ValueError, match=r"^pass_at_k_curve: ks must be a list, got 4$"):
        pass_at_k_curve(10, c, ks=4)


def test_the_curve_has_intervals_of_the_given_confidence():
    c = [1, 4]
    for confidence in (0.5, 0.99):
        curve = pass_at_k_curve(8, c, [1], confidence=confidence)
        interval = wilson_interval(np.array(c) / 8, confidence=confidence)
        np.testing.assert_allclose((curve.low[0], curve.high[0]), interval[1:], rtol=1e-12)
    half, usual = pass_at_k_curve(8, c, [1], confidence=0.5), pass_at_k_curve(8, c, [1])
    assert usual.low < half.low < half.high < usual.high


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        interval = bootstrap_interval(rng.normal(size=60), confidence=0.9, resamples=400, seed=seed)
        hits += interval.low <= 0 <= interval.high
    assert 0.83 <= hits / 300 <= 0.95


def test_the_interval_approaches_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(size=1000)
    interval = bootstrap_interval(values, resamples=4000)
    error = 1.96 * values.std() / math.sqrt(1000)
    np.testing.assert_allclose(
        interval, values.mean() + np.array([0, -error, error]), atol=0.05 * error
    )


def test_columns_share_the_resamples_and_the_seed_decides():
    values = np.random.default_rng(0).normal(size=(20, 3))
    whole = bootstrap_interval(values, seed=1)
    for j in range(3):
        np.testing.assert_allclose(np.array(whole)[:, j], bootstrap_interval(values[:, j], seed=1))
    np.testing.assert_array_equal(whole, bootstrap_interval(values, seed=1))
    assert not np.array_equal(whole.low, bootstrap_interval(values, seed=2).low)


def test_equal_values_have_an_interval_without_width():
    assert bootstrap_interval(np.full(5, 0.3)) == (0.3, -math.inf, math.inf)
    reach = 1 - 0.05 ** (1 / 5)
    for value in (0.3, 1.0):  # the upper one is cut at 1
        np.testing.assert_allclose(
            bootstrap_interval(np.full(5, value), is_fraction=True),
            (value, max(value - reach, 0), min(value + reach, 1)),
        )
    # As in the contrasts of an analysis, nothing is known of the variance between problems.
    assert bootstrap_interval([0.3]) == (0.3, -math.inf, math.inf)
    assert bootstrap_interval(np.ones((1, 2))).low.shape == (2,)


def test_the_wilson_interval_equals_its_values_by_hand():
    # t of 3 degrees of freedom: 3.182446, t² = 10.127964
    # 1 1 1 0: m = 3/4, Σ(v - m)² = 3/4, so D = (3/4 + 1/4) / (3/4 + 1/4) = 1, q = 2.531991,
    # (0.75 + 1.265996 ± √(2.531991 · 0.1875 + 1.602745)) / 3.531991
    interval = wilson_interval([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(interval, [0.75, 0.162697, 0.978866], atol=2e-6)
    # All solved: D = 1, and (1 + q/2 - q/2) / (1 + q) = 1 / (1 + q)
    np.testing.assert_allclose(wilson_interval(np.ones(4)), [1, 1 / 3.531991, 1], atol=1e-6)
    np.testing.assert_allclose(wilson_interval(np.zeros(4)), [0, 0, 2.531991 / 3.531991], atol=1e-6)
    # Equal values: D = 0.25 / (4 · 0.25 + 0.25) = 0.2, q = 0.506398
    # (0.5 + 0.253199 ± √(0.506398 / 4 + 0.064110)) / 1.506398
    interval = wilson_interval(np.full(4, 0.5))
    np.testing.assert_allclose(interval, [0.5, 0.210101, 0.789899], atol=2e-6)


def test_the_wilson_interval_of_coin_flips_is_that_of_wilson():
    # With 0s and 1s alone D = 1 for any number of them, and for many problems t is the normal
    # quantile.
    values = np.repeat([1.0, 0.0], [90_000, 10_000])
    z, p, n = 1.959964, 0.9, 100_000
    ends = [
        (p + z**2 / 2 / n + sign * z * math.sqrt(p * (1 - p) / n + z**2 / 4 / n**2))
        / (1 + z**2 / n)
        for sign in (-1, 1)
    ]
    np.testing.assert_allclose(wilson_interval(values)[1:], ends, rtol=1e-6)


def test_the_wilson_interval_contains_the_mean_lies_within_0_and_1_and_mirrors():
    values = np.random.default_rng(0).beta(0.2, 0.1, size=(7, 500))
    mean, low, high = wilson_interval(values)
    assert ((low >= 0) & (low <= mean) & (mean <= high) & (high <= 1)).all()
    mirrored = wilson_interval(1 - values)
    np.testing.assert_allclose(mirrored.low, 1 - high, atol=1e-12)
    np.testing.assert_allclose(wilson_interval(values[:, 3]), np.array([mean, low, high])[:, 3])
    narrow = wilson_interval(values, confidence=0.5)
    assert ((low < narrow.low) & (narrow.high < high)).all()


def test_one_problem_has_the_wilson_interval_0_to_1():
    np.testing.assert_array_equal(wilson_interval([[0.3, 1.0]]), [[0.3, 1], [0, 0], [1, 1]])


@pytest.mark.parametrize("problems", [30, 200])
@pytest.mark.parametrize("a, b", [(1, 1), (0.3, 1), (0.1, 0.6)])
def test_wilson_intervals_of_pass_at_k_cover_the_truth_near_saturation_too(problems, a, b):
    # benchmarks/interval_coverage.py prints these cells, and those of the percentile bootstrap.
    n, ks, simulations = 64, np.array([1, 8, 32, 60, 64]), 1500
    rng = np.random.default_rng(1)
    correct = rng.binomial(n, rng.beta(a, b, (simulations, problems))).T
    values = pass_at_k(n, np.arange(n + 1)[:, None], ks)[correct]
    # 1 - E[(1 - p)^k] = 1 - Π_{i<k} (b + i) / (a + b + i)
    truth = np.array([1 - np.prod((b + np.arange(k)) / (a + b + np.arange(k))) for k in ks])
    interval = wilson_interval(values)
    covered = np.mean((interval.low <= truth) & (truth <= interval.high), axis=0)
    assert (covered >= 0.9).all() and (covered <= 0.99).all()


def test_the_percentile_bootstrap_loses_its_coverage_near_saturation():
    # Why Pass@K has another interval.
    n, problems, simulations = 64, 30, 300
    rng = np.random.default_rng(1)
    correct = rng.binomial(n, rng.uniform(size=(simulations, problems))).T
    interval = bootstrap_interval(pass_at_k(n, correct, n), resamples=400)
    # Where all problems are solved it has no width, and is returned as unbounded.
    covers = (interval.low <= 64 / 65) & (interval.high >= 64 / 65) & np.isfinite(interval.low)
    assert np.mean(covers) < 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap_interval([]), r"values must have shape \[problems, ...\].*got \(0,\)"),
        (lambda: bootstrap_interval([1.0, math.nan]), "a value is not finite"),
        (
            lambda: bootstrap_interval([1.0], confidence=95),
            "confidence must be > 0 and < 1, got 95",
        ),
        (lambda: bootstrap_interval([1.0], resamples=0), "resamples must be >= 1, got 0"),
        (lambda: pass_at_k_curve(4, 2), r"n and c must have shape \[problems\], got \(\)"),
        (lambda: wilson_interval([]), r"values must have shape \[problems, ...\].*got \(0,\)"),
        (
            lambda: wilson_interval([0.5, 1.5]),
            "wilson_interval: values must be from 0 to 1, got 1.5",
        ),
        (lambda: wilson_interval([0.5, -1.0]), "values must be from 0 to 1, got -1.0"),
        (lambda: wilson_interval([0.5, math.nan]), "a value is not finite"),
        (
            lambda: wilson_interval([0.5, 0.6], confidence=95),
            "confidence must be > 0 and < 1, got 95",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
