"""Paired tests of two runs against enumeration, simulation and values by hand."""

import itertools
import math
import sys
import tracemalloc

import numpy as np
import pytest

from entropy_rl.stats.bootstrap import crossed_bootstrap, holm, paired_bootstrap, sign_flip_p_value
from entropy_rl.stats.pass_at_k import bootstrap_interval, clopper_pearson_upper, pass_at_k


def sign_flips_by_hand(differences):
    sums = np.array(
        [np.dot(s, differences) for s in itertools.product([1, -1], repeat=len(differences))]
    )
    return np.mean(np.abs(sums) >= abs(sum(differences)) - 1e-12)


def bootstrap_by_hand(differences):
    """p-value and interval of 0.95 over all resamples, each as likely, with the one observed."""
    m, mean = len(differences), np.mean(differences)
    means = [np.mean(resample) for resample in itertools.product(differences, repeat=m)]
    deviations = math.sqrt(m / (m - 1)) * np.abs(np.array(means) - mean)
    reach = np.quantile(deviations, 0.95, method="inverted_cdf")
    return np.mean(deviations >= abs(mean) - 1e-12), (mean - reach, mean + reach)


def simulated_differences(kind, problems, k, simulations, seed):
    """Differences of pass@k, f64[problems, simulations], of two arms with the same mean of it."""
    rng = np.random.default_rng(seed)
    table = pass_at_k(64, np.arange(65), k)
    p = rng.beta(0.3, 1.0, size=(problems, simulations))
    # "equal": the same problems are easy for both; "skewed": Beta(3, 10) has the mean of Beta(0.3,
    # 1)
    q = p if kind == "equal" else rng.beta(3, 10, size=p.shape)
    return table[rng.binomial(64, q)] - table[rng.binomial(64, p)]


def test_the_bootstrap_comes_near_the_enumeration_of_all_resamples():
    differences = np.array([0.5, -0.25, 0.375, 0.125, 0.25, -0.0625])
    test = paired_bootstrap(differences, np.zeros(6), resamples=40_000)
    p_value, interval = bootstrap_by_hand(differences)
    assert p_value > 2 ** (1 - 6)
    # 4 standard errors of a share of 40,000
    assert test.p_value == pytest.approx(
        p_value, abs=4 * math.sqrt(p_value * (1 - p_value) / 40_000)
    )
    assert test.estimate == pytest.approx(np.mean(differences))
    np.testing.assert_allclose((test.low, test.high), interval, atol=0.01)


@pytest.mark.parametrize("problems", [1, 2, 3, 7, 10])
def test_the_sign_flips_of_few_problems_are_all_there_are(problems):
    rng = np.random.default_rng(problems)
    for differences in (rng.normal(0.5, 1, problems), rng.integers(-1, 3, problems) / 4):
        p_value = sign_flip_p_value(differences, np.zeros(problems))
        assert p_value == pytest.approx(sign_flips_by_hand(differences), rel=1e-12)


def test_random_sign_flips_come_near_all_of_them():
    differences = np.random.default_rng(0).normal(0.4, 1, 15)
    p = sign_flip_p_value(differences, np.zeros(15), patterns=2**14)
    drawn = sign_flip_p_value(differences, np.zeros(15), patterns=2**14 - 1)
    assert p == pytest.approx(sign_flips_by_hand(differences), rel=1e-12)
    assert drawn != p
    assert abs(drawn - p) < 4 * math.sqrt(p * (1 - p) / 2**14)  # standard errors


@pytest.mark.parametrize("problems", [6, 12, 40])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_holds_the_shifts_that_the_bootstrap_does_not_reject(problems, confidence):
    values = np.random.default_rng(problems).normal(0.3, 1, problems)
    test = paired_bootstrap(values, np.zeros(problems), confidence=confidence, resamples=999)
    shifts = np.linspace(-1.5, 2, 57)
    shifted = paired_bootstrap(values[:, None] - shifts, np.zeros((problems, 57)), resamples=999)
    inside = (shifts >= test.low) & (shifts <= test.high)
    np.testing.assert_array_equal(shifted.p_value > 1 - confidence, inside)


def test_runs_that_agree_everywhere_do_not_differ():
    for problems in (1, 2, 5, 30):
        values = np.random.default_rng(0).uniform(size=(problems, 3))
        # Fractions that differ on more than 1 - 0.05^(1/n) of all problems would all agree on n of
        # them with probability below 0.05; nothing is known of other values.
        reach = 1 - 0.05 ** (1 / problems)
        for is_fraction, half_width in ((True, reach), (False, math.inf)):
            test = np.array(paired_bootstrap(values, values, is_fraction=is_fraction))
            expected = np.array([[0], [-half_width], [half_width], [1]]).repeat(3, axis=1)
            np.testing.assert_allclose(test, expected)
        np.testing.assert_array_equal(sign_flip_p_value(values, values), 1)


def test_few_problems_can_say_nothing():
    assert paired_bootstrap([0.9], [0.1]) == pytest.approx((0.8, -math.inf, math.inf, 1.0))
    assert sign_flip_p_value([0.9], [0.1]) == 1
    for problems, least in ((2, 0.5), (3, 0.25), (5, 0.0625)):
        ones, zeros = np.ones(problems), np.zeros(problems)
        assert paired_bootstrap(ones, zeros) == (1.0, -math.inf, math.inf, least)
        assert sign_flip_p_value(ones, zeros) == least
        # Nor can any other differences.
        some = np.random.default_rng(0).normal(1, 0.2, (problems, 100))
        assert (paired_bootstrap(some, 0 * some, resamples=500).p_value >= least).all()
        # Nor can more problems, if no more of them differ.
        many = np.append(ones, np.zeros(40))
        test = paired_bootstrap(many, 0 * many)
        assert test.p_value >= least and test.low <= 0 < test.high < 1
        # Four standard errors of 10,000 random patterns.
        assert sign_flip_p_value(many, 0 * many) >= least - 4 * math.sqrt(
            least * (1 - least) / 10_000
        )
    # Six problems are the first that can.
    assert paired_bootstrap(np.ones(6), np.zeros(6)) == (1.0, 1.0, 1.0, 1 / 32)


def test_the_p_value_is_never_zero():
    ones, zeros = np.ones(500), np.zeros(500)
    assert paired_bootstrap(ones, zeros, resamples=999) == pytest.approx((1.0, 1.0, 1.0, 1 / 1000))
    assert sign_flip_p_value(ones, zeros, patterns=999) == 1 / 1000


@pytest.mark.parametrize("problems", [9, 60])
def test_the_exchange_of_the_runs_mirrors_the_tests(problems):
    a, b = np.random.default_rng(0).uniform(size=(2, problems))
    there, back = paired_bootstrap(a, b, resamples=999), paired_bootstrap(b, a, resamples=999)
    np.testing.assert_allclose(
        np.array(there), [-back.estimate, -back.high, -back.low, back.p_value]
    )
    assert sign_flip_p_value(a, b) == sign_flip_p_value(b, a)


def test_equal_sizes_of_differences_count_as_equal_whatever_their_rounding():
    # ± 0.1, the sum of which depends on the order in the last digits
    differences = 0.1 * np.array([1, 1, 1, 1, 1, 1, 1, -1, -1, 1])
    assert sign_flip_p_value(differences, 0 * differences) == pytest.approx(
        112 / 1024
    )  # 0, 1, 2, 8, 9, 10 of 10
    scaled = (
        paired_bootstrap(differences, 0 * differences),
        paired_bootstrap(differences * 10, 0 * differences),
    )
    assert scaled[0].p_value == scaled[1].p_value


def test_columns_share_the_draws_and_the_seed_decides():
    a, b = np.random.default_rng(0).uniform(size=(2, 40, 2, 3))
    whole = np.array(paired_bootstrap(a, b, resamples=500, seed=1))
    assert whole.shape == (4, 2, 3)
    one = a[:, 1, 2], b[:, 1, 2]
    np.testing.assert_allclose(whole[:, 1, 2], paired_bootstrap(*one, resamples=500, seed=1))
    np.testing.assert_array_equal(whole, paired_bootstrap(a, b, resamples=500, seed=1))
    assert not np.array_equal(whole, paired_bootstrap(a, b, resamples=500, seed=2))
    flips = sign_flip_p_value(a, b, patterns=500, seed=1)
    assert flips[1, 2] == pytest.approx(sign_flip_p_value(*one, patterns=500, seed=1))
    assert not np.array_equal(flips, sign_flip_p_value(a, b, patterns=500, seed=2))


@pytest.mark.parametrize(
    "kind, problems, k", [("equal", 30, 8), ("equal", 83, 1), ("equal", 500, 64), ("skewed", 83, 1)]
)
def test_runs_that_are_the_same_differ_significantly_in_one_of_twenty_simulations(
    kind, problems, k
):
    simulations = 600
    differences = simulated_differences(kind, problems, k, simulations, seed=problems + k)
    test = paired_bootstrap(differences, np.zeros_like(differences), resamples=1000)
    flips = sign_flip_p_value(differences, np.zeros_like(differences), patterns=1000)
    for p_value in (test.p_value, flips):
        assert abs(np.mean(p_value <= 0.05) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / simulations)
    np.testing.assert_array_equal(test.p_value <= 0.05, (test.low > 0) | (test.high < 0))


def test_the_tests_are_careful_where_pass_at_k_is_a_coin():
    # k = n: pass@k is 0 or 1, and few problems differ.
    differences = simulated_differences("equal", 30, 64, 600, seed=0)
    assert (
        np.mean(paired_bootstrap(differences, 0 * differences, resamples=1000).p_value <= 0.05)
        < 0.03
    )
    assert np.mean(sign_flip_p_value(differences, 0 * differences, patterns=1000) <= 0.05) < 0.02


# --- several tests ---


def test_holm_equals_its_value_by_hand():
    # sorted 0.005 0.01 0.03 0.04: times 4 3 2 1 = 0.02 0.03 0.06 0.04, and never less than one
    # before
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_array_equal(holm([0.6, 0.5]), [1, 1])
    np.testing.assert_array_equal(holm([0.2]), [0.2])
    assert holm([]).shape == (0,)


def test_holm_is_the_closed_test_of_bonferroni():
    # A hypothesis falls if every intersection that it is part of falls: p = max of |I| · min p over
    # these.
    p = np.random.default_rng(0).beta(0.5, 2, size=6)
    p[3] = p[1]
    sets = [s for size in range(1, 7) for s in itertools.combinations(range(6), size)]
    expected = [max(min(1, len(s) * p[list(s)].min()) for s in sets if i in s) for i in range(6)]
    np.testing.assert_allclose(holm(p), expected, rtol=1e-14)
    np.testing.assert_array_equal(np.sort(holm(p)), holm(np.sort(p)))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: paired_bootstrap([1.0, 2.0], [1.0]),
            r"values and baseline must have the same shape, got \(2,\) and \(1,\)",
        ),
        (lambda: paired_bootstrap([math.nan], [1.0]), "paired_bootstrap: a value is not finite"),
        (lambda: paired_bootstrap([], []), r"paired_bootstrap: values must have shape"),
        (
            lambda: paired_bootstrap([1.0], [1.0], confidence=1),
            "paired_bootstrap: confidence must be > 0 and < 1, got 1",
        ),
        (
            lambda: sign_flip_p_value([1.0, 2.0], [1.0]),
            r"sign_flip_p_value: values and baseline must",
        ),
        (lambda: sign_flip_p_value([math.inf], [1.0]), "sign_flip_p_value: a value is not finite"),
        (
            lambda: sign_flip_p_value([1.0], [1.0], patterns=0),
            "patterns must be >= 1, got 0",
        ),
        (lambda: holm([0.1, 1.1]), r"holm: p_values must be from 0 to 1, got \[0.1, 1.1\]"),
        (lambda: holm([math.nan]), "holm: p_values"),
        (lambda: holm(0.1), r"holm: p_values must have shape \[m\], got \(\)"),
    ],
)
def test_arguments_of_the_tests_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_paired_test_sees_what_two_intervals_cannot():
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(size=200)
    baseline, values = difficulty, difficulty + 0.02 + rng.normal(0, 0.02, 200)
    paired = paired_bootstrap(values, baseline)
    assert paired.estimate == pytest.approx(np.mean(values) - np.mean(baseline))
    assert 0 < paired.low < paired.high
    assert bootstrap_interval(values).low < bootstrap_interval(baseline).high


# --- seeds and problems
# ------------------------------------------------------------------------------------


def seeds_and_problems(seeds, problems, spread, rng):
    """Differences without an effect: what a seed, a problem, and both together add, with these
    spreads.
    """
    of_seeds, of_problems, of_both = spread
    return (
        of_seeds * rng.normal(size=(seeds, 1))
        + of_problems * rng.normal(size=(1, problems))
        + of_both * rng.normal(size=(seeds, problems))
    )


@pytest.mark.parametrize(
    "seeds, spread, rate",
    [
        (3, (0.1, 0.0, 0.0), (0.02, 0.09)),
        (8, (0.1, 0.0, 0.0), (0.02, 0.09)),
        (8, (0.0, 0.5, 0.1), (0.02, 0.09)),
        (8, (0.05, 0.15, 0.4), (0.01, 0.08)),
        (3, (0.03, 0.15, 0.4), (0.0, 0.06)),
    ],
)
def test_the_crossed_interval_leaves_out_the_truth_about_as_often_as_it_says(seeds, spread, rate):
    rng, missed, runs = np.random.default_rng(0), 0, 400
    for i in range(runs):
        differences = seeds_and_problems(seeds, 40, spread, rng)
        test = crossed_bootstrap(differences, np.zeros_like(differences), resamples=300, seed=i)
        missed += not test.low <= 0 <= test.high
        assert (test.p_value <= 0.05) == (not test.low <= 0 <= test.high)
    assert rate[0] <= missed / runs <= rate[1]


def test_the_crossed_bootstrap_sees_an_effect_that_all_seeds_have():
    rng = np.random.default_rng(0)
    differences = 0.1 + seeds_and_problems(8, 100, (0.01, 0.1, 0.1), rng)
    test = crossed_bootstrap(differences + 0.5, np.full((8, 100), 0.5))
    assert test.p_value < 0.001 and 0.05 < test.low < test.estimate < test.high < 0.15
    assert test.estimate == pytest.approx(differences.mean())


def test_copies_of_a_seed_say_no_more_of_problems_and_copies_of_a_problem_no_more_of_seeds():
    rng = np.random.default_rng(1)
    of_problems = np.repeat(rng.normal(size=(1, 50)), 8, axis=0)
    one = crossed_bootstrap(of_problems, np.zeros((8, 50)))
    paired = paired_bootstrap(of_problems[0], np.zeros(50))
    assert one.high - one.low == pytest.approx(paired.high - paired.low, rel=0.03)
    of_seeds = np.repeat(rng.normal(size=(8, 1)), 50, axis=1)
    other = crossed_bootstrap(of_seeds, np.zeros((8, 50)), resamples=100_000)
    student = 2.364624 * of_seeds[:, 0].std(ddof=1) / np.sqrt(8)  # t of 7 degrees of freedom
    assert (other.high - other.low) / 2 == pytest.approx(student, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 20), (4, 1)])
def test_one_seed_or_one_problem_says_nothing(shape):
    test = crossed_bootstrap(np.ones(shape), np.zeros(shape))
    assert (test.estimate, test.low, test.high, test.p_value) == (1, -np.inf, np.inf, 1)


def test_methods_that_agree_everywhere_do_not_differ():
    values = np.random.default_rng(0).random((3, 9))
    reach = 1 - 0.05 ** (1 / values.shape[1])
    test = tuple(map(float, crossed_bootstrap(values, values, is_fraction=True)))
    assert test == pytest.approx((0, -reach, reach, 1))
    assert tuple(map(float, crossed_bootstrap(values, values))) == (0, -math.inf, math.inf, 1)


@pytest.mark.parametrize("differ", [1, 2, 5, 9])
def test_few_problems_that_differ_slightly_do_not_exclude_a_difference(differ):
    # One more correct sample of 128, with one of 7 seeds, on a few of 64 problems.
    values = np.full((7, 64), 0.5)
    other = values.copy()
    other[0, :differ] += 1 / 128
    test = crossed_bootstrap(other, values, is_fraction=True)
    assert test.low < -0.04 and test.high > 0.04 and test.p_value > 0.05
    unbounded = crossed_bootstrap(other, values)
    assert (unbounded.low, unbounded.high) == (-math.inf, math.inf)
    # Where all problems differ, the bootstrap knows them.
    other[0] += 1 / 128
    assert crossed_bootstrap(other, values, is_fraction=True).high < 0.01


def test_the_bound_of_a_fraction_is_that_of_the_binomial_distribution():
    for count, problems in ((0, 64), (1, 64), (9, 30)):
        bound = clopper_pearson_upper(count, problems, confidence=0.9)
        at_most = sum(
            math.comb(problems, i) * bound**i * (1 - bound) ** (problems - i)
            for i in range(count + 1)
        )
        assert at_most == pytest.approx(0.1)
    assert clopper_pearson_upper(7, 7) == 1


def test_an_effect_on_few_problems_stays_on_its_side_of_zero():
    values = np.zeros((8, 20))
    other = values.copy()
    other[:, :9] = 0.25
    test = crossed_bootstrap(other, values, is_fraction=True)
    assert test.p_value <= 0.05 and 0 < test.low < test.estimate < test.high


@pytest.mark.parametrize(
    "values, baseline, message",
    [
        (
            np.ones((2, 3)),
            np.ones((3, 2)),
            r"crossed_bootstrap: values and baseline must have the same shape, got \(2, 3\)",
        ),
        (
            np.ones(3),
            np.ones(3),
            r"crossed_bootstrap: values must have shape \[seeds, problems\], got \(3,\)",
        ),
        (np.full((2, 2), np.nan), np.ones((2, 2)), "crossed_bootstrap: a value is not finite"),
    ],
)
def test_the_crossed_bootstrap_refuses_what_does_not_fit(values, baseline, message):
    with pytest.raises(ValueError, match=message):
        crossed_bootstrap(values, baseline)


# --- blocks of resamples --------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 100, 4096])
def test_resamples_in_blocks_are_those_drawn_at_once(monkeypatch, block):
    rng = np.random.default_rng(0)
    one, two = rng.random((2, 37, 3))
    calls = {
        "paired": lambda: paired_bootstrap(one, two, resamples=501, seed=1),
        "crossed": lambda: crossed_bootstrap(one.T, two.T, resamples=501, seed=1),
        "flips": lambda: sign_flip_p_value(one, two, patterns=501, seed=1),
        "mean": lambda: bootstrap_interval(one, resamples=501, seed=1),
    }
    at_once = {name: np.asarray(call()) for name, call in calls.items()}
    # The package has a function of this name.
    monkeypatch.setattr(sys.modules["entropy_rl.stats.pass_at_k"], "_BLOCK", block)
    for name, call in calls.items():
        np.testing.assert_allclose(call(), at_once[name], rtol=0, atol=1e-14, err_msg=name)


def test_the_memory_of_a_test_does_not_grow_with_resamples_times_problems():
    one, two = np.random.default_rng(0).random((2, 2000))
    tracemalloc.start()
    paired_bootstrap(one, two, resamples=4000)
    sign_flip_p_value(one, two, patterns=4000)
    assert tracemalloc.get_traced_memory()[1] < 30e6  # one int64[4000, 2000] is 64 MB
    tracemalloc.stop()
