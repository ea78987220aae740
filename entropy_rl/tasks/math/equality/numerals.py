r"""Numbers within an answer that a parser would misread, in one spelling.

`1{,}000` would be two numbers, `2\frac13\pi` a product of three factors, and `1e3` 3·e.
"""

from __future__ import annotations

import re
from fractions import Fraction

_COMMA = r"(?:\{\s*,\s*\}|,\s*\\!\s*)"
_GROUPED = re.compile(rf"(?<![0-9.])[0-9]{{1,3}}(?:{_COMMA}[0-9]{{3}})+(?![0-9])")
_POINTS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}(?![0-9]|[.,][0-9])")
_COMMAS = r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])"
# A group that begins with 0 is no number of its own, within brackets and lists neither.
_WITH_ZERO = re.compile(
    r"(?<![0-9.])[1-9][0-9]{0,2}(?:,[1-9][0-9]{2})*(?:,0[0-9]{2})(?:,[0-9]{3})*(?![0-9])"
)
_IN_ARGUMENT = re.compile(rf"(?:(?<=\\frac\{{)|(?<=\}}\{{)|(?<=\^\{{)){_COMMAS}(?=\}})")
_FACTOR = r"\s*(?:[A-Za-z]|\\(?:pi|sqrt|frac|cdot|times|alpha|beta|theta)(?![A-Za-z]))"
_COEFFICIENT = re.compile(rf"(?P<before>[^,()\[\]{{}}]*?)(?<![0-9.,]){_COMMAS}(?={_FACTOR})")
_MIXED = re.compile(
    r"(?<![0-9A-Za-z.,^_}])(?<![\^_] )([0-9]{1,20}) ?\\frac\{([0-9]{1,20})\}\{([0-9]{1,20})\}"
)
_E_NOTATION = re.compile(
    r"(?<![0-9A-Za-z.\\])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([+-]?[0-9]{1,3})(?![0-9.]|\s*_)"
)
_TIMES = re.compile(r"(?<=[0-9])\s*x\s*(?=10\s*\^)")
_DOTTED = re.compile(
    r"(?<=\.)(?P<before>[0-9]*)(?:\\dot\{(?P<first>[0-9])\}(?P<inner>[0-9]*)\\dot\{(?P<last>[0-9])\}"
    r"|(?<=\.)\((?P<all>[0-9]{1,20})\))"
)
_MINUTES = re.compile(
    r"(?P<sign>-?)(?P<degrees>[0-9]{1,9})\s*\^\\circ\s*(?P<minutes>[0-9]{1,2})\s*'"
    r"(?:\s*(?P<seconds>[0-9]{1,2})\s*(?:''|\"))?"
)


def join_groups(text: str) -> str:
    r"""Remove separators of thousands that are no commas: `1{,}000`, `1,\!000`, `1.000.000`."""
    text = _POINTS.sub(lambda match: match[0].replace(".", ""), text)
    return _GROUPED.sub(lambda match: re.sub(_COMMA, "", match[0]), text)


def rewrite_numerals(text: str) -> str:
    r"""Rewrite mixed numbers, powers of ten with e, and commas of thousands before a factor.

    Args:
      text: LaTeX with braces around arguments.

    Returns:
      The same answer, with \frac{7}{3} for 2\frac{1}{3}, 2.5\times 10^{-3} for 2.5e-3, 1000\pi for
      1,000\pi (within brackets, only where a group begins with 0), 0.\overline{3} for 0.(3), and
      \frac{61}{2}^\circ for 30^\circ30'.
    """
    text = _TIMES.sub(r"\\times ", _E_NOTATION.sub(_power_of_ten, text))
    if "," in text:
        for pattern in (_WITH_ZERO, _IN_ARGUMENT):
            text = pattern.sub(lambda match: match[0].replace(",", ""), text)
        found = _COEFFICIENT.match(text)
        if found and "," not in text[found.end() :]:
            text = text.replace(",", "")
    if "." in text:
        text = _DOTTED.sub(_overline, text)
    if "'" in text and (angle := _MINUTES.fullmatch(text)):
        text = _in_degrees(angle)
    return _MIXED.sub(_improper, text) if r"\frac" in text else text


def _power_of_ten(match: re.Match[str]) -> str:
    return rf"{match[1]}\times 10^{{{int(match[2])}}}"


def _improper(match: re.Match[str]) -> str:
    whole, a, b = (int(part) for part in match.groups())
    return rf"\frac{{{whole * b + a}}}{{{b}}}" if 0 < a < b else match[0]


def _overline(match: re.Match[str]) -> str:
    period = match["all"] or f"{match['first']}{match['inner']}{match['last']}"
    return rf"{match['before']}\overline{{{period}}}"


def _in_degrees(angle: re.Match[str]) -> str:
    parts = (int(angle[name] or 0) for name in ("degrees", "minutes", "seconds"))
    value = sum(Fraction(part, size) for part, size in zip(parts, (1, 60, 3600), strict=True))
    return rf"{angle['sign']}\frac{{{value.numerator}}}{{{value.denominator}}}^\circ"
