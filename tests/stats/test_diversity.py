"""Diversity against values by hand and slow references that keep n-grams as tuples."""

import itertools
import math

import numpy as np
import pytest

from entropy_rl.stats.diversity import (
    distinct_ngrams,
    majority_vote,
    repetition_rate,
    unique_answers,
)


def tuples(row, n):
    return [tuple(int(token) for token in row[i : i + n]) for i in range(len(row) - n + 1)]


def slow_distinct(rows, n):
    grams = [gram for row in rows for gram in tuples(row, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


# --- n-grams ---


def test_distinct_n_equals_its_value_by_hand():
    rows = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct_ngrams(rows, 1) == pytest.approx(3 / 7)
    assert distinct_ngrams(rows, 2) == pytest.approx(3 / 5)  # 12 21 12 | 12 23
    assert distinct_ngrams(rows, 3) == pytest.approx(3 / 3)  # 121 212 | 123
    assert distinct_ngrams(rows, 4) == 1.0


def test_ngrams_never_reach_into_the_next_row():
    assert distinct_ngrams([[1, 2], [1, 2]], 2) == 0.5  # with 21 it would be 2 of 3
    assert distinct_ngrams([[1, 2, 3], [4], [], [1, 2, 3]], 2) == 0.5


def test_rows_shorter_than_n_give_none_and_nothing_at_all_gives_nan():
    assert distinct_ngrams([[1], [5, 6], []], 2) == 1.0
    assert math.isnan(distinct_ngrams([[1], [5, 6]], 3))
    assert math.isnan(distinct_ngrams([], 1))
    assert math.isnan(distinct_ngrams([[], np.zeros(0, np.int32)], 1))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("vocabulary", [2, 40, 60_000])
def test_distinct_n_equals_a_set_of_tuples(vocabulary, dtype):
    rng = np.random.default_rng(vocabulary)
    high = min(vocabulary, np.iinfo(dtype).max)
    rows = [rng.integers(0, high, rng.integers(0, 60)).astype(dtype) for _ in range(50)]
    for n in (1, 2, 3, 4, 9):
        assert distinct_ngrams(rows, n) == pytest.approx(slow_distinct(rows, n), rel=1e-15)


@pytest.mark.parametrize("n", [3, 5, 9, 24])
def test_distinct_n_stays_exact_where_n_ranks_do_not_fit_in_64_bits(n):
    # 3000 tokens to the power of 6 leave 63 bits. Phrases that differ in one token only, in any
    # place.
    rng = np.random.default_rng(n)
    phrase = rng.integers(-(2**31), 2**31, 3000)
    rows = [phrase, phrase[::-1]]
    for at in rng.integers(0, 3000, 20):
        changed = phrase.copy()
        changed[at] += 1
        rows.append(changed)
    assert distinct_ngrams(rows, n) == pytest.approx(slow_distinct(rows, n), rel=1e-15)


def test_no_ngrams_collide_beyond_64_bits():
    # Six digits to base 4096 modulo 2**64 would leave 4 bits of the first digit, and none with
    # seven.
    for n, first in ((6, 16), (7, 1)):
        rows = [np.arange(4096), [0] + [7] * (n - 1), [first] + [7] * (n - 1)]
        assert distinct_ngrams(rows, n) == 1.0


def test_only_equality_of_tokens_and_not_their_order_or_size_matters():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 30, 40) for _ in range(20)]
    names = rng.permutation(2**40 + np.arange(30) ** 5)
    for n in (1, 2, 3):
        assert distinct_ngrams([names[row] for row in rows], n) == distinct_ngrams(rows, n)
        assert distinct_ngrams(rows[::-1], n) == distinct_ngrams(rows, n)


def test_twice_the_same_rows_halve_distinct_n():
    rows = [np.random.default_rng(i).integers(0, 1000, 30) for i in range(10)]
    assert distinct_ngrams(rows * 2, 2) == pytest.approx(distinct_ngrams(rows, 2) / 2)


def test_the_repetition_rate_equals_its_value_by_hand():
    assert repetition_rate([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(
        1 - 4 / 5
    )  # 1234 2341 3412 4123 1234
    assert repetition_rate([7] * 10, 4) == pytest.approx(1 - 1 / 7)
    assert repetition_rate([1, 2, 1, 3], 1) == pytest.approx(1 / 4)
    assert repetition_rate(range(20)) == 0.0


def test_rows_shorter_than_n_repeat_nothing():
    for row in ([], [1], [1, 1, 1]):
        assert repetition_rate(row, 4) == 0.0


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_the_repetition_rate_equals_a_set_of_tuples(n):
    rng = np.random.default_rng(n)
    for length in (8, 9, 100, 700):
        row = rng.zipf(1.5, length) % 50_000
        grams = tuples(row, n)
        assert repetition_rate(row, n) == pytest.approx(1 - len(set(grams)) / len(grams), abs=1e-15)


# --- answers ---


def test_the_most_frequent_answer_wins_and_samples_without_one_abstain():
    answers = ["4", None, "5", "4", None, None, None]
    assert majority_vote(answers, [True, False, False, True, False, False, False]) == 1.0
    assert majority_vote(answers, [False, False, True, False, False, False, False]) == 0.0


def test_no_answer_at_all_is_wrong():
    assert majority_vote([None, None], [False, False]) == 0.0
    assert majority_vote([], []) == 0.0


def test_equal_texts_with_different_verdicts_count_by_their_share():
    assert majority_vote(["a", "a", "a", "b"], [True, False, True, False]) == pytest.approx(2 / 3)


def test_a_tie_counts_by_the_expectation_under_a_fair_draw():
    assert majority_vote(["a", "b"], [True, False]) == 0.5
    assert majority_vote(["a", "b", "c", None], [True, False, False, False]) == pytest.approx(1 / 3)
    # The shares are 1/2, 1 and, of an answer that lost, of no account.
    answers, correct = ["a", "a", "b", "b", "c"], [True, False, True, True, False]
    assert majority_vote(answers, correct) == pytest.approx((1 / 2 + 1) / 2)


def test_the_majority_vote_equals_a_slow_reference_on_all_small_cases():
    for answers in itertools.product(["a", "b", "c", None], repeat=4):
        for correct in itertools.product([False, True], repeat=4):
            given = {x for x in answers if x is not None}
            most = max((answers.count(x) for x in given), default=0)
            tied = [x for x in given if answers.count(x) == most]
            shares = [
                np.mean([c for x, c in zip(answers, correct, strict=True) if x == y]) for y in tied
            ]
            expected = np.mean(shares) if shares else 0.0
            assert majority_vote(answers, correct) == pytest.approx(expected)


def test_unique_answers_count_only_samples_with_an_answer():
    assert unique_answers(["1", "1", None, "2", "3"]) == 3 / 4
    assert unique_answers(["1"] * 8) == 1 / 8
    assert math.isnan(unique_answers([None, None]))
    assert math.isnan(unique_answers([]))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: distinct_ngrams([[1, 2]], 0), "n must be >= 1, got 0"),
        (lambda: repetition_rate([1, 2], -1), "n must be >= 1, got -1"),
        (
            lambda: distinct_ngrams([[0.5, 1.0]], 1),
            r"tokens must be int\[length\], got float64\[2\]",
        ),
        (lambda: repetition_rate([[1, 2], [3, 4]], 1), r"got int64\[2, 2\]"),
        (lambda: majority_vote(["a"], [True, False]), r"1 answers and correct of shape \(2,\)"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
