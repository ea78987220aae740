"""How different the samples of one problem are: n-grams, repetition, answers, majority vote.

NumPy on the host, as these are statistics of an evaluation. Every count is exact: nothing is
  hashed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

Answers = Sequence[str | None]  # None: no answer


def distinct_ngrams(rows: Sequence[ArrayLike], n: int) -> float:
    """Share of distinct n-grams among all n-grams of the rows: distinct-n.

    distinct-n = |{n-grams}| / number of n-grams, over all the rows together

    An n-gram never reaches from one row into the next, and rows shorter than n have none. More text
    repeats more: compare equal amounts only. Source: https://arxiv.org/abs/1510.03055 (section
      5.3).

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
    """Share of the n-grams of one completion that it had before: rep-n.

    rep-n = 1 - |{n-grams}| / number of n-grams

    Source: https://arxiv.org/abs/1908.04319 (section 6), where it is named seq-rep-n.

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
    """Whether the most frequent answer is correct: maj@n, self-consistency.

    Samples without an answer abstain. The value of an answer is the share of correct ones among its
    samples: 0 or 1, unless equal texts were judged differently. Answers that tie count by their
    mean, the expectation under a fair draw. Source: https://arxiv.org/abs/2203.11171.

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
    # The tied answers have as many samples each: the mean of their shares is the share of all of
    # them.
    won = [votes.get(answer) == most for answer in answers]
    return float(correct[won].mean())


def unique_answers(answers: Answers) -> float:
    """Number of distinct answers for each sample that has an answer.

    Args:
      answers: The answers of the samples, None where there is none. Equal means equal as text.

    Returns:
      A number in (0, 1]; NaN if there is no answer.
    """
    given = [answer for answer in answers if answer is not None]
    return len(set(given)) / len(given) if given else float("nan")


def ngram_codes(rows: Sequence[ArrayLike], n: int) -> np.ndarray:
    """Number the n-grams of the rows, so that two codes are equal exactly where the n-grams are.

    Tokens are replaced by their ranks 0..U-1 among the tokens that occur, and n ranks are the
    digits of a number to base U. Where that would leave int64, the digits so far are ranked anew,
    which keeps it exact.

    Args:
      rows: int[length] each.
      n: Tokens of an n-gram.

    Returns:
      int64[n-grams], row after row: max(0, length - n + 1) for each row.

    Raises:
      ValueError: n < 1, or tokens that are not whole numbers.
    """
    if n < 1:
        raise ValueError(f"n-grams: n={n!r} is not allowed; n >= 1")
    rows = [np.asarray(row) for row in rows if len(row) >= n]
    if not rows:
        return np.zeros(0, np.int64)
    tokens = rows[0] if len(rows) == 1 else np.concatenate(rows)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"n-grams: tokens of shape {tokens.shape}, {tokens.dtype}; expected whole numbers, "
            "[length]"
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
    # Leave out what began in one row and ended in another: n - 1 places before the end of each row.
    inside = np.ones(places, bool)
    for end in np.cumsum([len(row) for row in rows])[:-1]:
        inside[end - n + 1 : end] = False
    return codes[inside]


def count_distinct(codes: np.ndarray) -> int:
    """Number of different values in int64[...]; quicker than `np.unique`, which also returns
    them.
    """
    ordered = np.sort(codes, axis=None)
    return len(ordered) and 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def _rank(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Ranks int64[...] of the values among the different values, and how many these are."""
    low, high = int(values.min()), int(values.max())
    if high - low < 4 * len(values) + 1024:
        # A table of what occurs is quicker than sorting.
        offset = values.astype(np.int64) - low
        occurs = np.zeros(high - low + 1, np.int64)
        occurs[offset] = 1
        ranks = np.cumsum(occurs)
        return ranks[offset] - 1, int(ranks[-1])
    distinct, ranks = np.unique(values, return_inverse=True)
    return ranks.astype(np.int64), len(distinct)
