"""Answers in special forms: labels of choices, congruences, words, times and ratios."""

from __future__ import annotations

import re
from fractions import Fraction

from entropy_rl.tasks.math.equality.latex import split_top
from entropy_rl.tasks.math.equality.plain_numbers import value_of
from entropy_rl.tasks.math.equality.structure import squeeze

_LABEL = re.compile(
    r"(?:\\text\s*\{\s*)?(?i:(?:option|choice)\s*\}?\s*)?"
    r"(?:\((?P<a>[A-J])\)|(?P<b>[A-J])[).:]|(?P<c>[A-J])(?=\}|$))"
    r"(?P<close>\s*\})?\s*(?P<rest>.*?)\s*",
    re.DOTALL,
)
_LETTERS_ONLY = re.compile(r"(?=(?:[^A-Za-z]*[A-Za-z]){3})[A-Za-z .'-]+")  # two may be variables


def read_label(text: str) -> tuple[str, str] | None:
    """The label of a choice, such as (B), and its content."""
    match = _LABEL.fullmatch(text)
    if match is None:
        return None
    rest = match["rest"]
    if text.startswith(r"\text") and not match["close"]:
        rest = rest.removesuffix("}").strip()
    return match["a"] or match["b"] or match["c"], rest


_CONGRUENCE = re.compile(r"(.+?)\\equiv\s*(-?[0-9]+)\s*\\pmod\s*\{\s*([1-9][0-9]{0,9})\s*\}")


def read_congruence(text: str) -> tuple[str, int, int] | None:
    """The left side, the residue and the modulus of a congruence."""
    match = _CONGRUENCE.fullmatch(text)
    if match is None:
        return None
    modulus = int(match[3])
    return squeeze(match[1]), int(match[2]) % modulus, modulus


def is_words(text: str) -> bool:
    """Whether a text consists of letters, spaces and hyphens."""
    return bool(re.fullmatch(r"[A-Za-z .'-]{2,}", text))


def letters_of(text: str) -> str:
    """The letters of a text, for comparing words."""
    return "".join(filter(str.isalpha, text)).casefold()


def compare_words(gold: str, answer: str) -> bool | None:
    """Compare words as texts: math-verify takes them for products of letters in any order."""
    if _LETTERS_ONLY.fullmatch(gold) and _LETTERS_ONLY.fullmatch(answer):
        return letters_of(gold) == letters_of(answer)
    return None


_CLOCK = re.compile(
    r"([0-9]{1,2}):([0-5][0-9])(?::([0-5][0-9]))?\s*(?:\\text\s*\{)?\s*(?:([AaPp])\.?\s?[Mm]\.?)?\s*\}?"
)


def compare_clock(gold: str, answer: str) -> bool | None:
    """Compare times and ratios: 12:30 is no quotient, 3:2 is, 5:12:1 is no 5:12."""
    sides = gold, answer
    terms = [split_top(side, ":") for side in sides]
    if max(map(len, terms)) == 1:
        return None
    clocks = [_CLOCK.fullmatch(side) for side in sides]
    if all(clocks):
        first, second = ([int(part or 0) for part in clock.groups()[:3]] for clock in clocks)
        half = {(clock[4] or "").casefold() for clock in clocks} - {""}
        return first == second and len(half) <= 1
    if len(terms[0]) != len(terms[1]) and max(map(len, terms)) > 2:
        return False
    if min(map(len, terms)) > 1:
        a, b = ([value_of(term) for term in side] for side in terms)
        if all(isinstance(term, Fraction) for term in (*a, *b)):
            return all(a[0] * y == b[0] * x for x, y in zip(a, b, strict=True)) and (
                [bool(x) for x in a] == [bool(y) for y in b]
            )
        return None
    clock = clocks[0] or clocks[1]
    if clock and int(clock[1]) <= 24:
        # A ratio is in lowest terms, and few ratios look like a full five minutes.
        other = value_of(answer if clocks[0] else gold)
        hours, minutes = int(clock[1]), int(clock[2])
        is_ratio = minutes % 5 and isinstance(other, Fraction)
        return bool(is_ratio and other == Fraction(hours, minutes) and other.numerator == hours)
    return None
