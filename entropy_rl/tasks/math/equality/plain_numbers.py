"""Plain numbers: integers, decimals, fractions, mixed numbers and powers of ten, read exactly."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

_SQUEEZED = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"\s*\\l(?:or|and)(?![A-Za-z])\s*", ", "),
        (r"(?<=[0-9]), (?=[0-9]{3}(?![0-9]))", ";"),  # "1, 234" are two numbers
        (r"(?<![0-9]) | (?![0-9])", ""),  # "1 2" is not 12
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (r"^\(([A-Z])\)$", r"\1"),  # a choice
    ]
]
_DECIMAL = re.compile(
    r"(?P<sign>-?)(?P<whole>[0-9]+|[0-9]{1,3}(?:[, ][0-9]{3})+|)"
    r"(?:\.(?P<decimals>[0-9]*)"
    r"(?:\\(?:overline|bar|dot)\{(?P<repeated>[0-9]+)\}|(?P<dots>\\ldots)?))?"
    r"(?:(?:\\times|\\cdot|\*)10\^\{?(?P<exponent>[+-]?[0-9]{1,3})\}?)?"
)
_FRACTION = re.compile(
    r"(?P<sign>-?)(?:(?P<whole>[0-9]+) ?)??"
    r"(?:\\frac\{(?P<a>-?[0-9]+)\}\{(?P<b>-?[0-9]+)\}|(?P<c>[0-9]+)/(?P<d>[0-9]+))"
)
_PERIODS = re.compile(r"([0-9]*?)([0-9]{1,6}?)\2{2,}")
_MAX_NUMBER = 100  # characters of a plain number


@functools.lru_cache(maxsize=4096)
def value_of(text: str) -> Fraction | str:
    """Read a plain number; any other text is returned without spaces, no longer as LaTeX.

    Args:
      text: Tidied LaTeX.
    """
    for pattern, by in _SQUEEZED:
        text = pattern.sub(by, text)
    if len(text) > _MAX_NUMBER:
        return text
    match = _DECIMAL.fullmatch(text)
    if match and (match["whole"] or match["decimals"] or match["repeated"]):
        decimals, repeated = match["decimals"] or "", match["repeated"]
        period = _PERIODS.fullmatch(decimals) if match["dots"] else None
        if period:
            decimals, repeated = period.groups()
        value = Fraction(
            int(re.sub("[, ]", "", match["whole"]) + decimals or "0"), 10 ** len(decimals)
        )
        if repeated:
            value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(decimals))
        value *= Fraction(10) ** int(match["exponent"] or 0)
        return -value if match["sign"] else value
    match = _FRACTION.fullmatch(text)
    if match is None:
        return text
    whole = int(match["whole"] or 0)
    a, b = (int(match["a"]), int(match["b"])) if match["a"] else (int(match["c"]), int(match["d"]))
    if b == 0 or (match["whole"] and not 0 <= a < b):
        return text
    return (whole + Fraction(a, b)) * (-1 if match["sign"] else 1)


def rounds_to(value: str, rounded: str) -> bool:
    """Whether a number differs from the value by less than a unit of its last decimal."""
    a, b = value_of(value), value_of(rounded)
    if isinstance(a, str) or isinstance(b, str):
        return True
    return abs(a - b) < Fraction(1, 10 ** len(rounded.partition(".")[2]))


def is_rounding(value: str, rounded: str) -> bool:
    """Whether a decimal is a rounding of a plain number, and not equal to it: 0.333 of 1/3."""
    a, b = value_of(value), value_of(rounded)
    if isinstance(a, str) or isinstance(b, str) or a == b:
        return False
    digits = len(rounded.partition(".")[2])
    return digits > 1 and rounded.replace(".", "", 1).isdigit() and rounds_to(value, rounded)
