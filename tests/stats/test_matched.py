"""The controls against exhaustive enumeration, and on arms whose gain is known to be through
length alone.
"""

import itertools
import math

import numpy as np
import pytest

from entropy_rl.stats.bootstrap import paired_bootstrap
from entropy_rl.stats.diversity import distinct_ngrams, unique_answers
from entropy_rl.stats.matched import (
    ProblemSamples,
    diversity_at_equal_accuracy,
    pass_at_budget,
    pass_at_k_at_equal_length,
)
from entropy_rl.stats.pass_at_k import pass_at_k


def samples(correct, lengths=None, answers=None, tokens=None):
    n = len(correct)
    lengths = np.ones(n, int) if lengths is None else lengths
    return ProblemSamples(
        np.asarray(correct, bool), np.asarray(lengths), answers or [None] * n, tokens or [[0]] * n
    )


def random_samples(n, seed):
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, 20, rng.integers(1, 30)) for _ in range(n)]
    answers = [None if x == 0 else str(x) for x in rng.integers(0, 6, n)]
    return samples(rng.random(n) < 0.4, [len(row) for row in tokens], answers, tokens)


# --- equal tokens ---


def found_within(correct, lengths, budget):
    """The share of all orders of the samples that find a correct one before the budget is spent."""
    found = 0
    for order in itertools.permutations(range(len(correct))):
        spent = 0
        for i in order:
            spent += lengths[i]
            if spent > budget:
                break
            if correct[i]:
                found += 1
                break
    return found / math.factorial(len(correct))


@pytest.mark.parametrize("right", [0, 1, 2, 4, 6])
def test_pass_at_budget_equals_the_enumeration_of_all_orders(right):
    rng = np.random.default_rng(right)
    correct = rng.permutation(np.arange(6) < right)
    lengths = rng.integers(0, 9, 6)
    budgets = np.arange(lengths.sum() + 1)
    expected = [found_within(correct, lengths, budget) for budget in budgets]
    values = pass_at_budget(correct, lengths, budgets, orders=math.factorial(6))
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_random_orders_of_the_wrong_samples_come_near_all_of_them():
    rng = np.random.default_rng(0)
    correct, lengths = np.arange(9) < 2, rng.integers(1, 40, 9)
    budgets = np.linspace(0, lengths.sum(), 12)
    whole = pass_at_budget(correct, lengths, budgets, orders=math.factorial(7))
    drawn = pass_at_budget(correct, lengths, budgets, orders=math.factorial(7) - 1)
    assert not np.array_equal(whole, drawn)
    # 4 standard errors of 5039 values in [0, 1] would be 0.028
    np.testing.assert_allclose(drawn, whole, atol=0.028)


@pytest.mark.parametrize("n, right", [(1, 1), (20, 3), (64, 1), (64, 30), (50, 50), (50, 0)])
def test_with_equal_lengths_a_budget_of_k_samples_gives_pass_at_k(n, right):
    correct = np.random.default_rng(n).permutation(np.arange(n) < right)
    k = np.arange(1, n + 1)
    values = pass_at_budget(correct, np.full(n, 7), 7 * k, orders=2)
    np.testing.assert_allclose(values, pass_at_k(n, right, k), rtol=1e-11)
    # A budget short of the k-th sample by one token is one of k - 1.
    np.testing.assert_allclose(
        pass_at_budget(correct, np.full(n, 7), 7 * k[1:] - 1, orders=2), values[:-1]
    )
    np.testing.assert_array_equal(pass_at_budget(correct, np.full(n, 7), [0, 6.9, -5]), 0)


def test_pass_at_budget_grows_with_the_budget_up_to_certainty():
    arm = random_samples(40, seed=1)
    values = pass_at_budget(arm.correct, arm.lengths, np.arange(np.sum(arm.lengths) + 1))
    assert (np.diff(values) >= -1e-15).all()
    assert values[0] == 0 and values[-1] == pytest.approx(1, rel=1e-12)


def test_a_budget_above_all_tokens_is_refused():
    pass_at_budget([True, False], [4, 5], [9])
    with pytest.raises(ValueError, match=r"numbers <= 9, .* got \[9\.5\]$"):
        pass_at_budget([True, False], [4, 5], [9.5])


def test_an_arm_that_is_merely_longer_gains_at_equal_samples_but_not_at_equal_tokens():
    # Each sample of b is two samples of a, one after the other: as likely to succeed for each
    # token.
    rng = np.random.default_rng(0)
    budgets, k = np.array([20, 40, 80]), 4
    at_budget, at_k = np.zeros((2, 200, 3)), np.zeros((2, 200))
    for problem, p in enumerate(rng.beta(0.5, 4, 200)):
        a, b = rng.random(48) < p, (rng.random((48, 2)) < p).any(axis=1)
        for arm, (correct, length) in enumerate(((a, 10), (b, 20))):
            at_budget[arm, problem] = pass_at_budget(correct, np.full(48, length), budgets)
            at_k[arm, problem] = pass_at_k(48, correct.sum(), k)
    raw = paired_bootstrap(at_k[1], at_k[0])
    assert raw.p_value < 0.001 and raw.low > 0.03
    controlled = paired_bootstrap(at_budget[1], at_budget[0])
    assert (controlled.p_value > 0.05).all()
    assert (np.abs(controlled.estimate) < 0.02).all()


# --- equal lengths ---


def slow_equal_length(a, b, strata, ks):
    """All draws of min(n_a, n_b) samples of each stratum, one after another; strata(length) names
    one.
    """
    names = sorted({strata(x) for arm in (a, b) for x in arm.lengths})
    at = [
        [[i for i, x in enumerate(arm.lengths) if strata(x) == s] for s in names] for arm in (a, b)
    ]
    drawn = [min(len(x), len(y)) for x, y in zip(*at, strict=True)]
    values = []
    for arm, places in zip((a, b), at, strict=True):
        draws = itertools.product(
            *(itertools.combinations(place, m) for place, m in zip(places, drawn, strict=True))
        )
        counts = [sum(arm.correct[i] for i in itertools.chain(*draw)) for draw in draws]
        values.append([np.mean(pass_at_k(sum(drawn), np.array(counts, int), k)) for k in ks])
    return np.array(values)


@pytest.mark.parametrize("seed", range(5))
def test_pass_at_k_at_equal_length_equals_the_enumeration_of_all_draws(seed):
    rng = np.random.default_rng(seed)
    a = samples(rng.random(8) < 0.5, [1, 1, 1, 5, 5, 9, 9, 9])
    b = samples(rng.random(7) < 0.5, [1, 5, 5, 5, 5, 9, 20])
    ks = [1, 2, 3, 5]  # 1 + 2 + 1 samples are drawn
    values = np.array(pass_at_k_at_equal_length(a, b, ks))
    np.testing.assert_allclose(
        values[:, :3], slow_equal_length(a, b, lambda x: x, ks[:3]), rtol=1e-12
    )
    assert np.isnan(values[:, 3]).all()


def test_lengths_are_cut_at_the_quantiles_of_both_arms():
    rng = np.random.default_rng(0)
    a = samples(rng.random(6) < 0.5, [10, 11, 12, 13, 31, 32])
    b = samples(rng.random(6) < 0.5, [14, 15, 33, 34, 35, 36])
    # The median of the twelve lies between 15 and 31.
    values = np.array(pass_at_k_at_equal_length(a, b, [1, 2, 3], strata=2))
    np.testing.assert_allclose(
        values, slow_equal_length(a, b, lambda x: x > 20, [1, 2, 3]), rtol=1e-12
    )


def test_each_of_few_lengths_is_a_stratum_however_rare():
    # Quantiles would put the rare lengths 2 and 3 together.
    a = samples([False] * 20 + [True, False], [1] * 20 + [2, 3])
    b = samples([False] * 20 + [True, False], [1] * 20 + [3, 3])
    of_a, of_b = pass_at_k_at_equal_length(a, b, [1])
    assert of_a == 0  # its only correct one has a length that b lacks
    assert of_b == pytest.approx(0.5 / 21)


def test_equal_lengths_leave_pass_at_k_as_it_is():
    ks = [1, 2, 4, 8, 16, 32]
    a, b = samples(np.arange(32) < 3, np.full(32, 9)), samples(np.arange(32) < 20, np.full(32, 9))
    values = pass_at_k_at_equal_length(a, b, ks)
    np.testing.assert_allclose(values[0], pass_at_k(32, 3, ks), rtol=1e-11)
    np.testing.assert_allclose(values[1], pass_at_k(32, 20, ks), rtol=1e-11)


def test_one_stratum_is_pass_at_k_of_the_smaller_arm_for_both():
    # An unbiased estimate from a random part has the whole's as its expectation.
    a, b = random_samples(30, seed=2), random_samples(21, seed=3)
    values = pass_at_k_at_equal_length(a, b, [1, 5, 21, 22], strata=1)
    for value, arm in zip(values, (a, b), strict=True):
        np.testing.assert_allclose(
            value[:3], pass_at_k(len(arm.correct), arm.correct.sum(), [1, 5, 21])
        )
        assert math.isnan(value[3])


def test_arms_without_a_length_in_common_have_nothing_to_compare():
    values = pass_at_k_at_equal_length(
        samples([True, False], [3, 3]), samples([True, True], [8, 9]), [1, 2]
    )
    assert np.isnan(values).all()


def test_equal_length_treats_the_arms_alike():
    a, b = random_samples(40, seed=4), random_samples(33, seed=5)
    there, back = pass_at_k_at_equal_length(a, b, [1, 4]), pass_at_k_at_equal_length(b, a, [1, 4])
    np.testing.assert_array_equal(there, back[::-1])
    same = pass_at_k_at_equal_length(a, a, [1, 4, 40])
    np.testing.assert_array_equal(*same)
    np.testing.assert_allclose(same[0], pass_at_k(40, a.correct.sum(), [1, 4, 40]))  # all are drawn


def test_the_distribution_of_many_samples_sums_without_loss():
    rng = np.random.default_rng(0)
    a = samples(rng.random(1024) < 0.02, rng.integers(1, 3000, 1024))
    values = pass_at_k_at_equal_length(a, a, [1, 32, 1024])[0]
    np.testing.assert_allclose(values, pass_at_k(1024, a.correct.sum(), [1, 32, 1024]), rtol=1e-10)


def test_a_gain_through_length_alone_is_gone_at_equal_length():
    # Success depends on the length only; b writes longer.
    rng = np.random.default_rng(0)
    lengths = np.array([100, 200, 400, 800])
    success = np.array([0.02, 0.05, 0.1, 0.2])
    raw, controlled = np.zeros((2, 200, 2)), np.zeros((2, 200, 2))
    for problem, ease in enumerate(rng.uniform(0.2, 2, 200)):
        arms = []
        for weights in ([0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]):
            kind = rng.choice(4, 64, p=weights)
            arms.append(samples(rng.random(64) < ease * success[kind], lengths[kind]))
        raw[:, problem] = [pass_at_k(64, arm.correct.sum(), [1, 8]) for arm in arms]
        controlled[:, problem] = pass_at_k_at_equal_length(*arms, [1, 8])
    assert (paired_bootstrap(raw[1], raw[0]).low > 0.03).all()
    test = paired_bootstrap(controlled[1], controlled[0])
    assert (test.p_value > 0.05).all()
    assert (np.abs(test.estimate) < 0.02).all()


# --- equal accuracy ---


def one_right_answer(right, n):
    """Correct samples all alike, wrong ones all different."""
    tokens = [[1, 2] if i < right else [10 + i, 40 + i] for i in range(n)]
    return samples(
        np.arange(n) < right,
        answers=["7" if i < right else f"x{i}" for i in range(n)],
        tokens=tokens,
    )


def test_an_arm_that_is_only_more_accurate_is_as_diverse_at_equal_accuracy():
    a, b = one_right_answer(2, 10), one_right_answer(8, 10)
    assert unique_answers(a.answers) == 0.9 and unique_answers(b.answers) == 0.3
    assert distinct_ngrams(a.tokens, 1) == 0.9 and distinct_ngrams(b.tokens, 1) == 0.3
    # 2 correct and 2 wrong of each: answers 7 7 x y, tokens 1 2 1 2 and four others, no room for
    # 3-grams
    values = diversity_at_equal_accuracy(a, b)
    for name in ("unique_answers", "distinct_1", "distinct_2"):
        assert values[name] == (0.75, 0.75)
    assert np.isnan(values["distinct_3"]).all()


def test_what_is_drawn_whole_is_measured_whole():
    a = random_samples(30, seed=6)
    values = diversity_at_equal_accuracy(a, a)
    assert list(values) == ["unique_answers", "distinct_1", "distinct_2", "distinct_3"]
    assert values["unique_answers"] == (unique_answers(a.answers),) * 2
    for n in (1, 2, 3):
        assert values[f"distinct_{n}"] == (distinct_ngrams(a.tokens, n),) * 2


def test_the_mean_over_draws_comes_near_that_over_all_subsets():
    rng = np.random.default_rng(0)
    correct = np.arange(10) < 4
    tokens = [rng.integers(0, 9, rng.integers(3, 9)) for _ in range(10)]
    a = samples(correct, answers=[str(x) for x in rng.integers(0, 4, 10)], tokens=tokens)
    b = samples(np.arange(4) < 2)  # 2 correct and 2 wrong
    subsets = [
        x + y
        for x in itertools.combinations(range(4), 2)
        for y in itertools.combinations(range(4, 10), 2)
    ]
    assert len(subsets) == 90
    expected = np.mean([unique_answers([a.answers[i] for i in s]) for s in subsets])
    drawn = diversity_at_equal_accuracy(a, b, draws=3000)
    assert drawn["unique_answers"][0] == pytest.approx(expected, abs=0.02)
    # n-grams have 4 draws only: average over seeds
    for n in (1, 2, 3):
        expected = np.mean([distinct_ngrams([a.tokens[i] for i in s], n) for s in subsets])
        means = [diversity_at_equal_accuracy(a, b, seed=i)[f"distinct_{n}"][0] for i in range(150)]
        assert np.mean(means) == pytest.approx(expected, abs=4 * np.std(means) / math.sqrt(150))


def test_equal_accuracy_treats_the_arms_alike_and_the_seed_decides():
    a, b = random_samples(40, seed=7), random_samples(25, seed=8)
    there, back = (
        diversity_at_equal_accuracy(a, b, seed=3),
        diversity_at_equal_accuracy(b, a, seed=3),
    )
    assert there == {name: value[::-1] for name, value in back.items()}
    assert there == diversity_at_equal_accuracy(a, b, seed=3)
    assert there != diversity_at_equal_accuracy(a, b, seed=4)


def test_fewer_than_two_samples_have_no_diversity():
    for a, b in (([True] * 5, [False] * 5), ([True, True], [True, False])):
        values = diversity_at_equal_accuracy(samples(a), samples(b))
        assert np.isnan(np.array(list(values.values()))).all()


def test_draws_without_any_answer_are_left_out():
    a = samples([True] * 4, answers=["1", None, None, None])
    b = samples([True] * 2, answers=[None, None])
    of_a, of_b = diversity_at_equal_accuracy(a, b, draws=64)["unique_answers"]
    assert of_a == 1.0 and math.isnan(of_b)


# --- arguments ---

TWO = samples([True, False])


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: pass_at_budget([1, 0], [1, 1], [1]),
            r"correct must be bool\[n\], n >= 1, got int64\[2\]",
        ),
        (
            lambda: pass_at_budget([True], [1, 1], [1]),
            r"lengths must be int\[1\], .* got int64\[2\]",
        ),
        (lambda: pass_at_budget([True], [-1], [-2]), "lengths must be >= 0, got -1"),
        (
            lambda: pass_at_budget([True], [0.5], [0]),
            r"int\[1\], .* got float64\[1\]",
        ),
        (lambda: pass_at_budget([True], [3], [math.nan]), r"numbers <= 3, .* got \[nan\]"),
        (lambda: pass_at_budget([True], [3], 3), r"budgets must be a list .* got 3\.0"),
        (
            lambda: pass_at_budget([True], [3], [3], orders=0),
            "orders must be >= 1, got 0",
        ),
        (lambda: pass_at_k_at_equal_length(TWO, TWO, [0]), r"ks must be >= 1, got \[0\]"),
        (lambda: pass_at_k_at_equal_length(TWO, TWO, [1], strata=0), "strata must be >= 1, got 0"),
        (
            lambda: diversity_at_equal_accuracy(TWO, TWO, draws=0),
            "draws must be >= 1, got 0",
        ),
        (
            lambda: diversity_at_equal_accuracy(TWO, TWO._replace(answers=["1"])),
            "verdicts, answers and completions must be as many of each, got 2, 1 and 2",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
