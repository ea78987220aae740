r"""Notations that math-verify does not read, rewritten to those that it does.

Binomial coefficients such as `{}_5C_2`, degrees within trigonometric functions, numeral bases in
words, intervals with reversed brackets, vectors in angle brackets, and sets given by the values of
a variable.
"""

from __future__ import annotations

import re

from entropy_rl.tasks.math.equality.latex import bracketed, split_top

_NUMBER = r"(?:\{\s*[0-9]{1,3}\s*\}|[0-9])"
_CHOICES = re.compile(
    rf"(?<![\w}})\]])(?:\{{\s*\}}\s*)?[_^]\s*(?P<n>{_NUMBER})\s*(?:\\text\s*\{{\s*)?(?P<kind>[CP])"
    rf"\s*\}}?\s*_\s*(?P<k>{_NUMBER})"
)
_DEGREES = re.compile(
    r"\\(?P<name>sin|cos|tan|cot|sec|csc)\s*(?P<power>\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9])\s*)?"
    r"(?P<open>[({]?)\s*(?P<angle>-?[0-9]+(?:\.[0-9]+)?)\s*\^\\circ\s*(?P<close>[)}]?)"
)
_BASE_WORDS = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
"""
_BASES = {word: base for base, word in enumerate(_BASE_WORDS.split(), 2)}
_BASE_IN_WORDS = re.compile(
    r"(?<=[0-9A-F])\s*_\s*\{\s*(?:\\text\s*\{\s*)?(?i:(?:base[ -]*\}?\s*(?P<number>[0-9]{1,2})"
    rf"|(?:base[ -]*)?(?P<word>{'|'.join(_BASES)})))\s*(?:\}}\s*)?\}}"
)
_DIGITS = re.compile(r"(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]+(?=_\{?1[1-6]\}?$)")  # in a base above ten
_INTERVAL = re.compile(r"(?P<open>[\[\]])(?P<ends>[^\[\]]*)(?P<close>[\[\]])")
_MEMBER = re.compile(r"[A-Za-z]\s*\\in(?![A-Za-z])\s*")
_BUILDER = re.compile(
    r"\\\{\s*(?P<variable>[A-Za-z])\s*(?:\\mid(?![A-Za-z])|\||:)\s*(?P<condition>.*)\\\}",
    re.DOTALL,
)
_VALUE = re.compile(r"(?:(?!\\(?:le|ge|ne|in|approx|equiv)(?![A-Za-z]))[^=<>,;])+")


def rewrite(text: str) -> str:
    """Rewrite the notations of an answer that is tidied otherwise.

    Args:
      text: LaTeX.

    Returns:
      The same answer in notations that math-verify reads.
    """
    if "_" in text or "^" in text:
        text = _CHOICES.sub(_count, text)
        text = _BASE_IN_WORDS.sub(_write_base, text)
        text = _DEGREES.sub(_to_radians, text)
        digits = _DIGITS.match(text)
        if digits:
            text = digits[0].upper() + text[digits.end() :]
    if text.startswith(r"\{"):
        return _list_values(text)
    if text.startswith(r"\langle"):
        return _write_vector(text)
    return _close_intervals(text) if "]" in text or "[" in text else text


def _write_base(match: re.Match[str]) -> str:
    return f"_{{{match['number'] or _BASES[match['word'].casefold()]}}}"


def _count(match: re.Match[str]) -> str:
    n, k = (int(match[part].strip("{} ")) for part in ("n", "k"))
    if match["kind"] == "C":
        return rf"\binom{{{n}}}{{{k}}}"
    return rf"\frac{{{n}!}}{{{n - k}!}}" if k <= n else "0"


def _to_radians(match: re.Match[str]) -> str:
    if (match["open"] + match["close"]) not in ("", "()", "{}"):
        return match[0]
    power = (match["power"] or "").strip()
    return rf"\{match['name']}{power}(\frac{{{match['angle']}\pi}}{{180}})"


def _close_intervals(text: str) -> str:
    """Write ]0,1[, the ISO form of an open interval, as (0,1)."""
    member = _MEMBER.match(text)
    before = member[0] if member else ""
    parts = [_INTERVAL.fullmatch(part.strip()) for part in text[len(before) :].split(r"\cup")]
    if not all(parts) or all(part["open"] == "[" and part["close"] == "]" for part in parts):
        return text
    closed = []
    for part in parts:
        ends = part["ends"] if "," in part["ends"] else part["ends"].replace(";", ",")
        if len(split_top(ends, ",")) != 2:
            return text
        signs = "(" if part["open"] == "]" else "[", ")" if part["close"] == "[" else "]"
        closed.append(f"{signs[0]}{ends}{signs[1]}")
    return before + r"\cup ".join(closed)


def _write_vector(text: str) -> str:
    r"""Write \langle 1, 2\rangle as a column."""
    read = bracketed(text)
    if read is None or read[2] != r"\rangle" or len(read[1]) < 2:
        return text
    return r"\begin{pmatrix}" + r"\\ ".join(read[1]) + r"\end{pmatrix}"


def _list_values(text: str) -> str:
    r"""Write \{x \mid x=1 or x=2\} as \{1, 2\}."""
    builder = _BUILDER.fullmatch(text)
    if builder is None:
        return text
    values = []
    for part in split_top(builder["condition"].strip(), r"\lor"):
        name, sign, value = part.partition("=")
        if name.strip() != builder["variable"] or not sign or not _VALUE.fullmatch(value):
            return text
        if builder["variable"] in re.sub(r"\\[A-Za-z]+", "", value):
            return text
        values.append(value.strip())
    return rf"\{{{', '.join(values)}\}}"
