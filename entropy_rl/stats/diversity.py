"""Diversity of the samples of a problem: distinct-n, repetition, unique answers, majority vote.

NumPy on the host. Counts are exact: n-grams are numbered, not hashed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

Answers = Sequence[str | None]  # None: no answer


def distinct_ngrams(rows: Sequence[ArrayLike], n: int) -> float:
    """Compute distinct-n, the fraction of distinct n-grams among all n-grams of the rows.

    distinct-n = |{n-grams}| / number of n-grams, over all rows together

    No n-gram crosses the end of a row. The value decreases with the amount of text, so compare
    equal amounts only. Source: https://arxiv.org/abs/1510.03055, §5.3.

    Args:
      rows: int[length] each: the tokens of the samples of one problem.
      n: Tokens of an n-gram.

    Returns:
      A number in (0, 1]; NaN if there is no n-gram.

    Raises:
      ValueError: n < 1, or tokens that are not whole numbers.
    """
    codes = ngram_codes(rows, n)
    return count_distinct(codes) / len(codes) if len(codes) else float("nan")


def repetition_rate(row: ArrayLike, n: int = 4) -> float:
    """Compute seq-rep-n, the fraction of repeated n-grams of a completion.

    seq-rep-n = 1 - |{n-grams}| / number of n-grams

    Source: https://arxiv.org/abs/1908.04319, §6.

    Args:
      row: int[length], the tokens of the completion.
      n: Tokens of an n-gram.

    Returns:
      A number in [0, 1); 0 for rows shorter than n.

    Raises:
      ValueError: As `distinct_ngrams`.
    """
    codes = ngram_codes([row], n)
    return 1 - count_distinct(codes) / len(codes) if len(codes) else 0.0


def majority_vote(answers: Answers, correct: ArrayLike) -> float:
    """Compute maj@n (self-consistency): whether the most frequent answer is correct.

    Samples without an answer have no vote. The value of an answer is the fraction of its samples
    that are correct: 0 or 1, unless equal texts have different verdicts. Ties have the mean of
    their values, the expectation of a random choice. Source: https://arxiv.org/abs/2203.11171.

    Args:
      answers: The answers of n samples, None where there is none.
      correct: bool[n], their verdicts.

    Returns:
      A number in [0, 1]; 0 if there is no answer at all.

    Raises:
      ValueError: Not one verdict for each answer.
    """
    correct = np.asarray(correct, bool)
    if correct.shape != (len(answers),):
        raise ValueError(
            f"majority_vote: {len(answers)} answers and correct of shape {correct.shape}; "
            "expected one verdict for each answer"
        )
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    # Tied answers have equal numbers of samples, so the mean of their fractions is that of all.
    won = [votes.get(answer) == most for answer in answers]
    return float(correct[won].mean())


def unique_answers(answers: Answers) -> float:
    """Compute the number of distinct answers divided by the number of samples with an answer.

    Args:
      answers: The answers of the samples, None where there is none. Equal means equal as text.

    Returns:
      A number in (0, 1]; NaN if there is no answer.
    """
    given = [answer for answer in answers if answer is not None]
    return len(set(given)) / len(given) if given else float("nan")


def ngram_codes(rows: Sequence[ArrayLike], n: int) -> np.ndarray:
    """Number the n-grams of the rows: two codes are equal if and only if the n-grams are.

    Tokens are replaced by their ranks 0..U-1 among the tokens that occur, and an n-gram is a number
    of n digits to base U. Prefixes are ranked again where the number would overflow int64.

    Args:
      rows: int[length] each.
      n: Tokens of an n-gram.

    Returns:
      int64[n-grams], row after row: max(0, length - n + 1) for each row.

    Raises:
      ValueError: n < 1, or tokens that are not whole numbers.
    """
    if n < 1:
        raise ValueError(f"n-grams: n must be >= 1, got {n!r}")
    rows = [np.asarray(row) for row in rows if len(row) >= n]
    if not rows:
        return np.zeros(0, np.int64)
    tokens = rows[0] if len(rows) == 1 else np.concatenate(rows)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"n-grams: tokens must be int[length], got {tokens.dtype}{[*tokens.shape]}"
        )
    ranks, base = _rank(tokens)
    places = len(tokens) - n + 1
    codes, size = ranks[:places], base  # codes < size
    for i in range(1, n):
        if size * base >= 2**63:
            codes, size = _rank(codes)
        codes, size = codes * base + ranks[i : i + places], size * base
    if len(rows) == 1:
        return codes
    # Exclude n-grams that cross the end of a row: those that begin at its last n - 1 tokens.
    inside = np.ones(places, bool)
    for end in np.cumsum([len(row) for row in rows])[:-1]:
        inside[end - n + 1 : end] = False
    return codes[inside]


def count_distinct(codes: np.ndarray) -> int:
    """Count the distinct values of int64[...], faster than `np.unique`."""
    ordered = np.sort(codes, axis=None)
    return len(ordered) and 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def _rank(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Rank the values among the distinct ones: (ranks int64[...], number of distinct values)."""
    low, high = int(values.min()), int(values.max())
    if high - low < 4 * len(values) + 1024:
        # A table of the values is faster than sorting.
        offset = values.astype(np.int64) - low
        occurs = np.zeros(high - low + 1, np.int64)
        occurs[offset] = 1
        ranks = np.cumsum(occurs)
        return ranks[offset] - 1, int(ranks[-1])
    distinct, ranks = np.unique(values, return_inverse=True)
    return ranks.astype(np.int64), len(distinct)
