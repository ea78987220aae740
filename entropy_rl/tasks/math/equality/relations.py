"""Inequalities as unions of intervals: `x<1 or x>2` is `(-∞,1) ∪ (2,∞)`."""

from __future__ import annotations

import re
from typing import NamedTuple

from entropy_rl.tasks.math.equality.latex import bracketed, split_top

_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne", "=": "="}
_RELATION = re.compile(r"(\\(?:le|ge|ne)(?![A-Za-z])|[<>=])")
_VARIABLE = re.compile(r"[A-Za-z](?:_\{?\w\}?)?|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega)")
_BOUND = re.compile(
    r"(?:\\(?:frac|sqrt|pi|infty|cdot|times|ln|log)(?![A-Za-z])|[-+*/^(){}\s0-9.e])+"
)
_ABSOLUTE = re.compile(rf"\|\s*({_VARIABLE.pattern})\s*\|")
_POSITIVE = re.compile(
    r"0*[1-9][0-9]*(?:\.[0-9]*)?|[0-9]*\.0*[1-9][0-9]*|\\(?:sqrt|frac)\{[1-9][^-+]*"
)
_INFINITE = (r"-\infty", r"\infty")


class Interval(NamedTuple):
    """An interval in LaTeX, such as `(`, `-\\infty`, `2`, `]`."""

    open: str
    low: str
    high: str
    close: str


class Solution(NamedTuple):
    """The solution set of inequalities in one variable; no variable if it is given as intervals."""

    variable: str | None
    intervals: tuple[Interval, ...]


def read_solution(text: str) -> Solution | None:
    """Read inequalities in one variable, or a union of intervals.

    Args:
      text: A tidied answer.

    Returns:
      The solution set; None if it is neither.
    """
    builder = bracketed(text)
    if builder and builder[0] == r"\{" and len(builder[1]) == 1:
        parts = re.split(r"\\mid(?![A-Za-z])|(?<![|])\|(?![|])|:", builder[1][0], maxsplit=1)
        if len(parts) == 2 and _VARIABLE.match(parts[0].strip()):
            text = parts[1].strip()
    member = re.fullmatch(rf"({_VARIABLE.pattern})\s*\\in(?![A-Za-z])\s*(.*)", text, re.DOTALL)
    if member:
        intervals = _read_union(member[2])
        return intervals and Solution(member[1], intervals)
    if _RELATION.search(text):
        return _read_relations(text)
    intervals = _read_union(text)
    return intervals and Solution(None, intervals)


def _read_union(text: str) -> tuple[Interval, ...] | None:
    if re.sub(r"\s", "", text) == r"\mathbb{R}":
        return (Interval("(", *_INFINITE, ")"),)
    intervals = []
    for part in split_top(text, r"\cup"):
        read = bracketed(part)
        if read is None or len(read[1]) != 2 or read[0] not in "([" or read[2] not in ")]":
            return None
        low, high = (end.replace("+", "", 1) if r"+\infty" in end else end for end in read[1])
        intervals.append(Interval(read[0], low, high, read[2]))
    return tuple(intervals)


def _read_relations(text: str) -> Solution | None:
    joined = r"\land" if r"\land" in text else ","
    parts = split_top(text, r"\lor")
    if len(parts) == 1:
        parts = split_top(text, joined)
    else:
        joined = r"\lor"
    variables, intervals = set(), []
    for part in parts:
        read = _read_relation(part)
        if read is None:
            return None
        variables.add(read[0])
        intervals.append(read[1])
    if len(variables) != 1:
        return None
    variable = variables.pop()
    if len(intervals) == 1:
        return Solution(variable, tuple(intervals[0]))
    bounds = [i for several in intervals for i in several]
    if joined != r"\lor" and len(bounds) == 2:
        lower = [i for i in bounds if i.high == r"\infty" and i.low != r"-\infty"]
        upper = [i for i in bounds if i.low == r"-\infty" and i.high != r"\infty"]
        if len(lower) == len(upper) == 1:
            both = Interval(lower[0].open, lower[0].low, upper[0].high, upper[0].close)
            if joined == r"\land" or _is_below(both.low, both.high):
                return Solution(variable, (both,))
    if joined == r"\land":
        return None
    return Solution(variable, tuple(bounds))


def _is_below(low: str, high: str) -> bool:
    try:
        return float(low) < float(high)
    except ValueError:
        return False


def _read_relation(text: str) -> tuple[str, list[Interval]] | None:
    """One relation `x<2`, `2>x`, `1<x<2` or `|x|<2`, as its variable and intervals."""
    terms = [term.strip() for term in _RELATION.split(text)]
    if len(terms) == 3:
        left, sign, right = terms
        is_value = _VARIABLE.fullmatch(right) or _ABSOLUTE.fullmatch(right)
        if is_value and _BOUND.fullmatch(left):
            left, sign, right = right, _FLIPPED[sign], left
        absolute = _ABSOLUTE.fullmatch(left)
        if absolute and _POSITIVE.fullmatch(right) and sign not in ("=", r"\ne"):
            return absolute[1], _both_sides(sign, right)
        if not (_VARIABLE.fullmatch(left) and _BOUND.fullmatch(right)):
            return None
        return left, _half_lines(sign, right)
    if len(terms) == 5:
        low, first, middle, second, high = terms
        if first in (">", r"\ge") and second in (">", r"\ge"):
            low, first, second, high = high, _FLIPPED[second], _FLIPPED[first], low
        if first not in ("<", r"\le") or second not in ("<", r"\le"):
            return None
        if not (_VARIABLE.fullmatch(middle) and _BOUND.fullmatch(low) and _BOUND.fullmatch(high)):
            return None
        ends = ("[" if first == r"\le" else "("), ("]" if second == r"\le" else ")")
        return middle, [Interval(ends[0], low, high, ends[1])]
    return None


def _both_sides(sign: str, bound: str) -> list[Interval]:
    """The intervals of an absolute value, compared with a positive bound."""
    below, above = (_half_lines(_FLIPPED[sign], f"-{bound}"), _half_lines(sign, bound))
    if sign in ("<", r"\le"):
        return [Interval(below[0].open, below[0].low, above[0].high, above[0].close)]
    return below + above


def _half_lines(sign: str, bound: str) -> list[Interval]:
    below, above = _INFINITE
    if sign == "=":
        return [Interval("[", bound, bound, "]")]
    if sign in ("<", r"\le"):
        return [Interval("(", below, bound, "]" if sign == r"\le" else ")")]
    if sign in (">", r"\ge"):
        return [Interval("[" if sign == r"\ge" else "(", bound, above, ")")]
    return [Interval("(", below, bound, ")"), Interval("(", bound, above, ")")]
