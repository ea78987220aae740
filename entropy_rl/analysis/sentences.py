"""Split reasoning texts into sentences, and compute the entropy of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from entropy_rl.analysis.responses import Response

# arXiv 2506.14758 names "verify" and "check"; the other expressions are this library's. Matching
# ignores case.
REFLECTIVE = (
    r"\b(?:double[- ]?|re-?|cross-?)?check(?:s|ed|ing)?\b",
    r"\b(?:re-?)?verif(?:y|ies|ied|ying|ication)\b",
    r"\bvalidat(?:e|es|ed|ing)\b",
    r"\b(?:wait|hold on|hmm+)\b",
    r"\bre-?(?:consider|examine|evaluate|think|visit)(?:s|d|ed|ing)?\b",
    r"\bmake sure\b",
    r"\bon second thought\b",
    r"\b(?:mistake|error|wrong|incorrect)\b",
    r"\bis (?:this|that|it) (?:right|correct)\b",
    r"\btry (?:again|another|a different)\b",
)

# An opening $ precedes a non-space, a closing $ follows one and no digit follows it: "$5 and $6" is
# not a formula. Lengths are bounded: a text of only opening $ would take quadratic time.
_FORMULAS = re.compile(
    r"\$\$.{1,2000}?\$\$|\\\[.{1,2000}?\\\]|\\\(.{1,1000}?\\\)"
    r"|(?<![\\$])\$(?=[^\s$])(?:[^$\n\\]|\\.){0,500}?(?<=\S)\$(?!\d)",
    re.DOTALL,
)
_ABBREVIATION = re.compile(
    r"(?:\b(?i:e\.g|i\.e|cf|vs|resp|approx|et al)|\b(?:Dr|Mrs?|Ms|Prof)"
    r"|^[ \t]*(?:\d{1,3}|[A-Za-z]))\Z",  # last: the number of a list item, at the start of a line
    re.MULTILINE,
)
_BEFORE_NUMBER = re.compile(
    r"\b(?:eqs?|figs?|nos?|secs?|thms?|lem|props?|defs?|ch|pp?)\Z", re.IGNORECASE
)
_LONGEST_ABBREVIATION = 12
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|\Z)|[。！？]+[”’」』）]*|\n")  # noqa: RUF001
_FORMULA = "\ufffc"  # replaces the characters of a formula; no letter, punctuation or space


class Sentence(NamedTuple):
    """Characters begin <= i < end of a text."""

    begin: int
    end: int


class SentenceEntropy(NamedTuple):
    """Text of a sentence, mean entropy (nats) of its tokens, and their number."""

    text: str
    entropy: float
    tokens: int


def split_sentences(text: str) -> list[Sentence]:
    """Split a text into sentences, stripped of surrounding white space.

    A sentence ends
      - at . ! ? … before white space, unless a lower-case word or an operator follows;
      - at an empty line, and at a line break that is neither before a lower-case word nor next to
        a display formula.
    It does not end inside $..$, $$..$$, \\(..\\) or \\[..\\], at a decimal point, after
    abbreviations such as "e.g.", after "Eq." before a number, or after the number of a list item
    ("2. "). Text without letters and digits is not a sentence.

    These are heuristics: "at p. A" is split, whatever its meaning.

    Args:
      text: Any text.

    Returns:
      The sentences, in order and without overlap.
    """
    masked = _FORMULAS.sub(_mask, text)
    sentences, begin = [], 0
    for end in [*_ends(masked), len(text)]:
        piece = text[begin:end]
        if any(character.isalnum() for character in piece):
            left = begin + len(piece) - len(piece.lstrip())
            sentences.append(Sentence(left, left + len(piece.strip())))
        begin = end
    return sentences


def _mask(match: re.Match[str]) -> str:
    """Mask a formula; a full stop at its end is kept, as in "so $x = 3.$"."""
    formula = match.group()
    closing = 2 if formula.endswith(("$$", "\\]", "\\)")) else 1
    inner = formula[:-closing].rstrip()
    if inner.endswith((".", "!", "?")) and not inner.endswith("\\!"):
        # The closing delimiter becomes quotes, which may follow the end of a sentence.
        return _FORMULA * (len(inner) - 1) + "." + '"' * (len(formula) - len(inner))
    return _FORMULA * len(formula)


def _ends(text: str) -> Iterator[int]:
    for match in _END.finditer(text):
        following = text[match.end() : match.end() + 80]
        ends = _line_ends if match.group() == "\n" else _sign_ends
        if ends(text, match.start(), following):
            yield match.end()


def _line_ends(text: str, place: int, following: str) -> bool:
    if re.match(r"[ \t]*\n", following):
        return True
    before = text[max(0, place - 80) : place].rstrip(" \t")
    if before.endswith("\n"):  # second line break of an empty line; the first ended the sentence
        return False
    beside_formula = before.endswith(_FORMULA * 3) or following.lstrip(" \t").startswith(
        _FORMULA * 3
    )
    return not (beside_formula or _goes_on(following))


def _sign_ends(text: str, place: int, following: str) -> bool:
    sign, following = text[place], following.lstrip()
    if sign in "。！？" or not following:  # noqa: RUF001
        return True
    before = text[max(0, place - _LONGEST_ABBREVIATION) : place]
    if sign == "." and _ABBREVIATION.search(before):
        return False
    if sign == "." and following[0] in "0123456789(" + _FORMULA and _BEFORE_NUMBER.search(before):
        return False  # "Eq. 5", but not "The answer is no. Then"
    if sign == "!" and before[-1:].isalnum() and not following[0].isalpha():
        return False  # 5! = 120
    return not (_goes_on(following) or following[0] in "=+<>/,;:)≤≥≠×÷·")  # noqa: RUF001


def _goes_on(following: str) -> bool:
    """Whether the following text begins with a lower-case word; single letters are variables."""
    return re.match(r"[ \t]*[^\W\d_]{2}", following) is not None and following.lstrip()[0].islower()


def sentence_entropies(response: Response) -> list[SentenceEntropy]:
    """The sentences of a response with the mean entropy of their tokens.

    A token belongs to the first sentence that it overlaps. Tokens outside of sentences and
    sentences without tokens are left out.
    """
    sentences = split_sentences(response.text)
    if not sentences:
        return []
    begins, ends = np.array(sentences, np.int64).T
    place = np.searchsorted(ends, response.spans[:, 0], side="right")
    inside = response.spans[:, 1] > np.append(begins, np.iinfo(np.int64).max)[place]
    inside &= response.spans[:, 1] > response.spans[:, 0]
    count = np.bincount(place[inside], minlength=len(sentences))
    total = np.bincount(place[inside], response.entropy[inside], len(sentences))
    return [
        SentenceEntropy(response.text[s.begin : s.end], float(total[i] / count[i]), int(count[i]))
        for i, s in enumerate(sentences)
        if count[i]
    ]


def compile_patterns(patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    """Compile regular expressions, ignoring case.

    Raises:
      ValueError: One is not a valid regular expression.
    """
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern, re.IGNORECASE))
        except re.error as error:
            raise ValueError(
                f"must be a Python regular expression, got {pattern!r} ({error})"
            ) from None
    return tuple(compiled)
