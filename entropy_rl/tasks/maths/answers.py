r"""Final answers: the last \boxed{...}, and when two answers are the same."""

from __future__ import annotations

import re
from fractions import Fraction

from entropy_rl.tasks.task import Verdict

MAX_BOXED = 300  # characters; the longest answer of MATH-500 has 159


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}.

    math-verify joins several boxed answers to a set, which makes `\boxed{41} wait, \boxed{42}` wrong.

    Args:
      text: A completion of any length; only its last box is looked at.

    Returns:
      The content; None where there is no box, or the last one is empty, not closed or longer than
      `MAX_BOXED` characters.
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for token in re.finditer(r"\\.|[{}]", text[start : start + MAX_BOXED + 1], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)  # an escaped brace counts nothing
        if depth == 0:
            content = text[start : start + token.start()]
            return content if content.strip() else None
    return None


def compare_simple(gold: str, answer: str) -> Verdict | None:
    """Decides equal texts, and plain numbers, exactly and without a process.

    Args:
      gold: The right answer.
      answer: The given one, out of its box.

    Returns:
      The verdict, or None where it takes more than this. That includes numbers closer than 1e-5: math-verify
      rounds to 6 decimals where one side is a decimal, so that 0.333333 is 1/3.
    """
    gold, answer = _normalise(gold), _normalise(answer)
    if gold == answer:
        return Verdict.CORRECT
    a, b = _number(gold), _number(answer)
    if a is None or b is None:
        return None
    if a == b:
        return Verdict.CORRECT
    return Verdict.WRONG if abs(a - b) > Fraction(1, 100_000) or a.denominator == b.denominator == 1 else None


_TYPOGRAPHY = (
    (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\$", ""), ("$", ""), (r"\!", ""), (r"\,", ""),
    (r"\;", ""), ("{,}", ","), ("\N{MINUS SIGN}", "-"),
)  # fmt: skip


def _normalise(text: str) -> str:
    for before, after in _TYPOGRAPHY:
        text = text.replace(before, after)
    text = " ".join(text.split()).removesuffix(".").removeprefix("+")
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", text)  # "1 2" is not 12


_DECIMAL = re.compile(r"-?(?:(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?|\.[0-9]+)")
_FRACTION = re.compile(r"(-?)(?:\\frac(?:\{(-?[0-9]+)\}\{(-?[0-9]+)\}|([0-9])([0-9]))|([0-9]+)/([0-9]+))")
_MAX_NUMBER = 100  # characters; longer ones are no plain numbers


def _number(text: str) -> Fraction | None:
    if len(text) > _MAX_NUMBER:
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", ""))
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    sign, *parts = match.groups()
    numerator, denominator = (int(part) for part in parts if part is not None)
    if denominator == 0:
        return None
    return Fraction(-numerator if sign else numerator, denominator)


def check_equal(gold: str, answer: str) -> Verdict:
    """Compares two answers by math-verify. Runs in a worker of the pool, which alone limits its time.

    Args:
      gold: The right answer. Where math-verify cannot read it, only the same text is correct.
      answer: The given one, out of its box.

    Returns:
      CORRECT, WRONG, or UNPARSABLE where math-verify reads nothing.
    """
    import logging

    from math_verify import parse, verify

    # It warns that it has no limit of time, once per module, and prints what it cannot parse.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    given = parse(rf"\boxed{{{answer}}}", parsing_timeout=None)
    if not given:
        return Verdict.UNPARSABLE
    right = parse(rf"\boxed{{{gold}}}", parsing_timeout=None)
    # The comparison is not symmetric: the right answer comes first.
    return Verdict.CORRECT if verify(right, given, timeout_seconds=None) else Verdict.WRONG
