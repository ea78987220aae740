"""Sentences of reasoning texts, and the entropy of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from entropy_rl.analysis.responses import Response

# Keywords "such as verify or check", says arXiv 2506.14758; the expressions are ours. Case does not
# matter.
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

# A $ opens before a sign and closes behind one, not before a digit: "$5 and $6" is no formula.
# Lengths are bounded, or a text of nothing but opening signs would take quadratic time.
_MATHS = re.compile(
    r"\$\$.{1,2000}?\$\$|\\\[.{1,2000}?\\\]|\\\(.{1,1000}?\\\)"
    r"|(?<![\\$])\$(?=[^\s$])(?:[^$\n\\]|\\.){0,500}?(?<=\S)\$(?!\d)",
    re.DOTALL,
)
_ABBREVIATION = re.compile(
    r"(?:\b(?i:e\.g|i\.e|cf|vs|resp|approx|et al)|\b(?:Dr|Mrs?|Ms|Prof)"
    r"|^[ \t]*(?:\d{1,3}|[A-Za-z]))\Z",  # the last: the number of an item, at the start of its line
    re.MULTILINE,
)
_BEFORE_NUMBER = re.compile(
    r"\b(?:eqs?|figs?|nos?|secs?|thms?|lem|props?|defs?|ch|pp?)\Z", re.IGNORECASE
)
_LONGEST_ABBREVIATION = 12
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|\Z)|[。！？]+[”’」』）]*|\n")  # noqa: RUF001
_FORMULA = "\ufffc"  # stands for the characters of a formula: no letter, no sign, no space


class Sentence(NamedTuple):
    """Characters begin <= i < end of a text."""

    begin: int
    end: int


class SentenceEntropy(NamedTuple):
    """A sentence's text and the mean entropy (nats) of its tokens."""

    text: str
    entropy: float
    tokens: int


def split_sentences(text: str) -> list[Sentence]:
    """Cuts a text into sentences, without the white space around them.

    A sentence ends
      - at . ! ? … before white space, if what follows can begin one: no word in lower case, no
        operator;
      - at an empty line, and at any line break that is not before a word in lower case or beside a
        formula that stands on lines of its own.
    It does not end inside $..$, $$..$$, \\(..\\) or \\[..\\], at a decimal point, after "e.g." and
    the like, after "Eq." before a number, or after the number of an item ("2. "). Stretches without
    letter or digit are no sentences.

    These are rules, not a model of language: "at p. A" is cut as they say, whatever was meant.

    Args:
      text: Any text.

    Returns:
      The sentences, in order; they do not overlap.
    """
    masked = _MATHS.sub(_mask, text)
    sentences, begin = [], 0
    for end in [*_ends(masked), len(text)]:
        piece = text[begin:end]
        if any(character.isalnum() for character in piece):
            left = begin + len(piece) - len(piece.lstrip())
            sentences.append(Sentence(left, left + len(piece.strip())))
        begin = end
    return sentences


def _mask(match: re.Match[str]) -> str:
    """A formula without its content; a full stop at its end stays, as in "so $x = 3.$"."""
    formula = match.group()
    closing = 2 if formula.endswith(("$$", "\\]", "\\)")) else 1
    inner = formula[:-closing].rstrip()
    if inner.endswith((".", "!", "?")) and not inner.endswith("\\!"):
        # Closing quotes may follow the stop of a sentence.
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
    if before.endswith("\n"):  # the second break of an empty line: the first has ended the sentence
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
    """Whether what follows begins with a word in lower case; a single letter is taken for a
    variable.
    """
    return re.match(r"[ \t]*[^\W\d_]{2}", following) is not None and following.lstrip()[0].islower()


def sentence_entropies(response: Response) -> list[SentenceEntropy]:
    """The sentences of a response with the mean entropy of their tokens.

    A token belongs to the first sentence that it has a character of; one without is left out, and
    so is a sentence without a token of its own.
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
    """Regular expressions that are found whatever the case.

    Raises:
      ValueError: One that is no regular expression, by its name.
    """
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern, re.IGNORECASE))
        except re.error as error:
            raise ValueError(
                f"{pattern!r} is not allowed: {error}; allowed: regular expressions of Python"
            ) from None
    return tuple(compiled)
