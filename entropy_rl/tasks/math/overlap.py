"""Contamination check: exact and n-gram overlap of test problems with a training set.

After appendix C of the GPT-3 paper, arXiv 2005.14165.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence

from entropy_rl.tasks.math.equality.typography import write_signs

Words = tuple[str, ...]

_SPACING = re.compile(
    # layout without mathematical meaning
    r"\\(?:left|right|quad|qquad|displaystyle|textstyle|limits)(?![A-Za-z])"
    r"|\\[!,;:>\s()\[\]]|~"  # spaces and math delimiters
)
_SPELLINGS = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\leq(?:q|slant|qslant)?(?![A-Za-z])", r"\\le"),
        (r"\\geq(?:q|slant|qslant)?(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\(?:[lc]?dots)(?![A-Za-z])|\.\.\.", r"\\ldots "),
        (r"√", r"\\sqrt "),
    ]
]
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,|\{,\})(?=[0-9]{3}(?![0-9]))")
_MOST_PROBLEMS, _MOST_SHARE = 20, 0.01  # an n-gram of more test problems is not counted
_UNSPACED = (
    "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Japanese, Chinese, Korean: each character is a word
)
# Commands, numbers, words and operators; braces, dollar signs and punctuation are dropped.
_WORD = re.compile(
    rf"\\[a-z]+|[0-9]+(?:\.[0-9]+)?|[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W\d_])+|[-+*/=<>^!|%]"
)


@dataclasses.dataclass(frozen=True)
class Match:
    """Overlap of one test problem with the training set. Problems are counted from 0."""

    test: int
    exact: bool  # a training problem has the same words
    share: float  # fraction of its n-grams that occur anywhere in the training set
    train: int | None  # the exact match, or the training problem with the most of its n-grams
    train_share: float  # fraction of its n-grams that occur in that training problem


def split_words(text: str) -> Words:
    """Split a problem into lower-case words, without punctuation and LaTeX spacing.

    Operators are words: x + 1 differs from x - 1. Signs have one spelling: n² is n^2, ≤ is \\leq.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", write_signs(text))
    for pattern, by in _SPELLINGS:
        text = pattern.sub(by, text)
    return tuple(_WORD.findall(_THOUSANDS.sub("", _SPACING.sub(" ", text)).lower()))


def n_grams(words: Words, n: int) -> set[Words]:
    """The distinct n-grams of a problem; a problem with fewer than n words is one gram."""
    if len(words) < n:
        return {words} if words else set()
    return {words[i : i + n] for i in range(len(words) - n + 1)}


def common_grams(test: Sequence[Words], n: int = 13) -> set[Words]:
    """The n-grams of more than 20 and more than 1% of the test problems.

    They are those of an instruction that problems share, and tell nothing about one of them.
    """
    counts = collections.Counter(gram for words in test for gram in n_grams(words, n))
    most = max(_MOST_PROBLEMS, _MOST_SHARE * len(test))
    return {gram for gram, count in counts.items() if count > most}


def find_overlap(train: Iterable[Words], test: Sequence[Words], n: int = 13) -> list[Match]:
    """Find the n-grams of every test problem in the training problems.

    Args:
      train: Training problems as words; iterated once and not stored.
      test: Test problems as words. One with fewer than n words is searched for as a whole. Their
        `common_grams` are left out.
      n: Number of words in a gram.

    Returns:
      One match per test problem, in order.
    """
    common = common_grams(test, n)
    grams = [n_grams(words, n) - common for words in test]
    places = collections.defaultdict(list)  # gram -> test problems that contain it
    for i, own in enumerate(grams):
        for gram in own:
            places[gram].append(i)
    same = collections.defaultdict(list)
    for i, words in enumerate(test):
        if words:
            same[words].append(i)
    found: list[set[Words]] = [set() for _ in test]
    best: list[tuple[int, int | None]] = [(0, None)] * len(test)  # (shared grams, training problem)
    exact: dict[int, int] = {}
    # First word -> lengths of the test problems shorter than n, which may occur inside longer ones.
    shorter = collections.defaultdict(set)
    for words in test:
        if 0 < len(words) < n:
            shorter[words[0]].add(len(words))
    for k, words in enumerate(train):
        shared = collections.Counter()
        own = n_grams(words, n)
        for start, word in enumerate(words):
            own.update(words[start : start + length] for length in shorter.get(word, ()))
        for gram in own:
            for i in places.get(gram, ()):
                shared[i] += 1
                found[i].add(gram)
        for i, count in shared.items():
            if count > best[i][0]:
                best[i] = (count, k)
        for i in same.pop(words, ()):
            exact[i] = k
    return [
        Match(
            test=i,
            exact=i in exact,
            share=1.0 if i in exact else len(found[i]) / max(1, len(grams[i])),
            train=exact.get(i, best[i][1]),
            train_share=1.0 if i in exact else best[i][0] / max(1, len(grams[i])),
        )
        for i in range(len(test))
    ]


def count_matches(matches: Sequence[Match]) -> dict[str, int]:
    """Count test problems: all, exact matches, with at least half of their n-grams, with any."""
    return {
        "problems": len(matches),
        "exact": sum(match.exact for match in matches),
        "half": sum(match.share >= 0.5 for match in matches),
        "any": sum(match.share > 0 for match in matches),
    }


def worst_matches(matches: Sequence[Match], count: int) -> list[Match]:
    """The matches with the highest share, exact ones first; none without overlap."""
    order = sorted(
        matches, key=lambda match: (-match.exact, -match.share, -match.train_share, match.test)
    )
    return [match for match in order[:count] if match.train is not None]
