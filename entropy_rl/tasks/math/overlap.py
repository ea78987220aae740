"""Which test problems occur in a training set: as a whole, or in word n-grams (GPT-3, 2005.14165,
app. C).
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

Words = tuple[str, ...]

_SPACING = re.compile(
    # layout without meaning
    r"\\(?:left|right|quad|qquad|displaystyle|textstyle|limits)(?![A-Za-z])"
    r"|\\[!,;:>\s()\[\]]|~"  # spaces, and the borders of a formula
)
_SPELLINGS = (("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\N{MINUS SIGN}", "-"))
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,|\{,\})(?=[0-9]{3}(?![0-9]))")
_UNSPACED = (
    "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Japanese, Chinese, Korean: each sign is a word
)
# Commands, numbers, words and operators; braces, dollars and punctuation are left out.
_WORD = re.compile(
    rf"\\[a-z]+|[0-9]+(?:\.[0-9]+)?|[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W\d_])+|[-+*/=<>^!|%]"
)


@dataclasses.dataclass(frozen=True)
class Match:
    """What of one test problem occurs in the training set. Problems are counted from 0."""

    test: int
    exact: bool  # a training problem has the same words
    share: float  # of its n-grams, that occur anywhere in the training set
    train: (
        int | None
    )  # the exact one, or the one with most of its n-grams; None where there is none
    train_share: float  # of its n-grams, that occur in that one


def split_words(text: str) -> Words:
    """The words of a problem: in lower case, without punctuation and the spacing of LaTeX.

    Operators are words: x + 1 is not x - 1.
    """
    for before, after in _SPELLINGS:
        text = text.replace(before, after)
    return tuple(_WORD.findall(_THOUSANDS.sub("", _SPACING.sub(" ", text)).lower()))


def n_grams(words: Words, n: int) -> set[Words]:
    """The different n-grams of a problem; one that is shorter is a single gram as a whole."""
    if len(words) < n:
        return {words} if words else set()
    return {words[i : i + n] for i in range(len(words) - n + 1)}


def find_overlap(train: Iterable[Words], test: Sequence[Words], n: int = 13) -> list[Match]:
    """Looks for the n-grams of every test problem in the training problems.

    Args:
      train: Training problems as words; read once, and not kept.
      test: Test problems as words. One of less than n words is looked for as a whole.
      n: Words of a gram.

    Returns:
      One match for every test problem, in order.
    """
    grams = [n_grams(words, n) for words in test]
    places = collections.defaultdict(list)  # gram -> the test problems that have it
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
    shorter = collections.defaultdict(
        set
    )  # first word -> lengths: these may stand within longer ones
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
        for i in same.get(words, ()):
            exact.setdefault(i, k)
    return [
        Match(
            test=i,
            exact=i in exact,
            share=len(found[i]) / max(1, len(grams[i])),
            train=exact.get(i, best[i][1]),
            train_share=1.0 if i in exact else best[i][0] / max(1, len(grams[i])),
        )
        for i in range(len(test))
    ]


def count_matches(matches: Sequence[Match]) -> dict[str, int]:
    """How many test problems there are, occur exactly, with at least half of their n-grams, and
    with any.
    """
    return {
        "problems": len(matches),
        "exact": sum(match.exact for match in matches),
        "half": sum(match.share >= 0.5 for match in matches),
        "any": sum(match.share > 0 for match in matches),
    }


def worst_matches(matches: Sequence[Match], count: int) -> list[Match]:
    """Those with the highest share, exact ones first; none without any overlap."""
    order = sorted(
        matches, key=lambda match: (-match.exact, -match.share, -match.train_share, match.test)
    )
    return [match for match in order[:count] if match.train is not None]
