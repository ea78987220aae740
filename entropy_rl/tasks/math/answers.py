r"""Final answers: the last \boxed{...}, and when two answers are the same.

Equal texts and plain numbers are decided here, the rest by math-verify. That is made for honest
answers: what a policy could be rewarded for without knowing the answer, and what would burn the
deadline, is refused before math-verify sees it. An answer whose text is that of the right one is
never refused.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from entropy_rl.tasks.math.latex import (
    closing_brace,
    is_name,
    read_chain,
    rounds_to,
    tidy,
    value_of,
)
from entropy_rl.tasks.math.refusals import UNIT, refuse
from entropy_rl.tasks.task import Verdict

MAX_BOXED = 300  # characters; the longest answer of MATH-500 has 159


_BOX = re.compile(r"\\boxed\s*\{")


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}.

    math-verify joins several boxed answers to a set, which makes `\boxed{41} wait, \boxed{42}`
    wrong.

    Args:
      text: A completion of any length; only its last box is looked at.

    Returns:
      The content; None where there is no box, or the last one is empty, not closed or longer than
      `MAX_BOXED` characters.
    """
    *_, start = [-1, *(match.end() for match in _BOX.finditer(text))]
    if start < 0:
        return None
    end = closing_brace(text[start : start + MAX_BOXED + 1])
    if end is None:
        return None
    content = text[start : start + end]
    return content if content.strip() else None


def canonical(answer: str) -> str:
    """A text that is equal for equal answers: for majority votes and for counting distinct answers.

    Two answers have the same one exactly where `compare_simple` calls them CORRECT. A number
    becomes a whole number or a fraction in lowest terms; anything else loses its typography.

    Args:
      answer: An answer, out of its box.

    Returns:
      The text. It is no LaTeX any more.
    """
    return str(value_of(tidy(answer)))


def compare_simple(gold: str, answer: str) -> Verdict | None:
    """Decides equal texts, plain numbers, and answers that are refused, without a process.

    Args:
      gold: The right answer.
      answer: The given one, out of its box.

    Returns:
      The verdict, or None where it takes more than this. That includes a number so close to the
      right one
      that it may be its rounding: math-verify rounds to 6 decimals, so that 0.333333 is 1/3.
    """
    gold, answer = tidy(gold), tidy(answer)
    a, b = value_of(gold), value_of(answer)
    if str(a) == str(b):
        return Verdict.CORRECT
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        whole = a.denominator == b.denominator == 1
        return Verdict.WRONG if whole or abs(a - b) > abs(a) * _ROUNDING else None
    return refuse(gold, answer)


def check_equal(gold: str, answer: str) -> Verdict:
    """Compares two answers by math-verify. Runs in a worker of the pool, which alone limits its
    time.

    Args:
      gold: The right answer. Where math-verify cannot read it, only the same text is correct.
      answer: The given one, out of its box. `compare_simple` has left it open.

    Returns:
      CORRECT, WRONG, or UNPARSABLE where there is nothing to read.
    """
    gold, answer = tidy(gold), tidy(answer)
    names, value, rounded = read_chain(answer)
    is_equation = bool(read_chain(gold)[0])
    for name in [] if is_equation else names:
        # math-verify looks at the last part alone, so that 41 = 42 would be 42.
        if not (is_name(name) or _same(value, name)):
            return Verdict.WRONG
    if not all(rounds_to(value, text) for text in rounded):
        return Verdict.WRONG
    if names and is_equation:
        value = f"{names[0]}={value}"  # the right answer is an equation, too
    gold, value = _without_unit(gold), _without_unit(tidy(value))
    verdict = compare_simple(gold, value)
    if verdict is not None:
        return verdict
    if _WORDS.fullmatch(gold) and _WORDS.fullmatch(value):
        # math-verify takes a word for a product of letters, which may be in any order.
        return Verdict.CORRECT if _letters(gold) == _letters(value) else Verdict.WRONG
    same = _same(_keep_variables(gold, gold), _keep_variables(value, gold))
    return Verdict.UNPARSABLE if same is None else Verdict.CORRECT if same else Verdict.WRONG


_ROUNDING = Fraction(1, 100_000)  # relative: 0.000001 is no rounding of 1/1048576


def _same(gold: str, answer: str) -> bool | None:
    """Whether math-verify calls them equal; None where it reads no answer."""
    parse, verify = _load()
    right, given = parse(gold), parse(answer)
    if not given:
        return None
    if not right:
        return False
    same = None if "%" in gold + answer else _compare_values(right[0], given[0])
    # The comparison is not symmetric: the right answer comes first.
    return verify(right, given) if same is None else same


@functools.cache
def _load() -> tuple[Callable, Callable]:
    """math-verify's parse and verify, without limits of time; the first call takes seconds."""
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    # It warns that it has no limit of time, once per module, and prints what it cannot parse.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    # As LaTeX or not at all: its other ways take the last number of any text that it cannot read.
    ways = [LatexExtractionConfig(boxed_match_priority=-1)]

    def read(text: str) -> list:
        return parse(f"${text}$", ways, extraction_mode="first_match", parsing_timeout=None)

    def compare(right: list, given: list) -> bool:
        return verify(right, given, timeout_seconds=None, allow_set_relation_comp=True)

    # What is imported and filled at first use costs no answer's time.
    for gold, answer in ((r"\sin^2 x+\cos^2 x", "1"), ("[0,1)", r"0\le x<1"), ("x", "abc")):
        compare(read(gold), read(answer))
    return read, compare


def _compare_values(gold: Any, given: Any) -> bool | None:
    """Compares two expressions by their values; where they have variables, at one point.

    It spares what is wrong a proof by `simplify`, which may take for ever. It confuses neither
    small numbers, where math-verify's 6 decimals make 2^{-30} the same as 0.0, nor large ones that
    differ by one. And what it says does not depend on what sympy has in its caches, as
    math-verify's word on decimals does.

    Returns:
      False where the values differ, True for equal constants, None where it takes more than this.
    """
    from sympy import Expr, Float, Rational, Symbol, log

    if not all(isinstance(side, Expr) and not isinstance(side, Symbol) for side in (gold, given)):
        return None  # a symbol may be a word
    # The same value for the same name: the symbols of the two sides may be of different kinds.
    variables = gold.free_symbols | given.free_symbols
    point = {x: Rational(zlib.crc32(x.name.encode()) % 1000 + 501, 1000) for x in variables}
    try:
        if variables:
            a, b = gold.evalf(50, subs=point), given.evalf(50, subs=point)
            noise = 1e-15 if gold.has(Float) or given.has(Float) else 1e-40
            return False if abs(a - b) > max(abs(a) * float(_ROUNDING), noise) else None
        if gold.has(Float) or given.has(Float):
            a, b = gold.evalf(), given.evalf()
            # A decimal may be the rounding of what is right.
            if abs(a - b) > abs(a) * float(_ROUNDING):
                return False
            return True if abs(a - b) <= abs(a) * 1e-13 else None
        a, b = gold.evalf(), given.evalf()
        if abs(a - b) > max(abs(a) * float(_ROUNDING), 1e-30):
            return False
        sizes = [int(log(abs(side), 10).evalf()) for side in (a, b) if side != 0]
        if max([0, *sizes]) > _MAX_DIGITS:
            return None
        a, b = gold.doit(), given.doit()
        if a.is_Rational and b.is_Rational:
            return bool(a == b)
        # Enough digits for all that stand before the point, and for what is small beside one.
        digits = _DIGITS + max([0, *sizes])
        a, b = a.evalf(digits), b.evalf(digits)
        return bool(abs(a - b) <= min(abs(a), 1) * Rational(10) ** -(_DIGITS // 2))
    except MemoryError:
        raise
    except Exception:  # of any kind, by sympy: there is no value, so there is nothing to say
        return None


_DIGITS = 120
_MAX_DIGITS = 50_000  # of numbers that are computed exactly


_UNIT_WORD = re.compile(
    r"(?:cent|centi?met(?:er|re)|cm|cubic|day|degree|dollar|euro|feet|foot|ft|g|gram|hour|inch|inche|item|kg"
    r"|kilogram|kilomet(?:er|re)|km|m|met(?:er|re)|mile|minute|ml|mm|month|mph|people|person|point|pound"
    r"|radian|second|sq|square|student|time|unit|way|week|yard|year)s?"
)
_MEASURE = re.compile(
    r"(?:[€£¥]|USD )? *(?P<number>.*?[0-9}])"
    r"(?: *\^ *\\circ| ?[€£¥]|(?P<space> *)(?P<words>[A-Za-z][A-Za-z. ]*)(?:\^\{?[23]\}?)?)?"
)
_UNIT_TAIL = re.compile(rf"(?<=\S)\s*{UNIT.pattern}$")


def _without_unit(text: str) -> str:
    """The text without a unit at its end, in words or signs."""
    tail = _UNIT_TAIL.search(text)
    if tail:
        text = text[: tail.start()]
    match = _MEASURE.fullmatch(text)
    if match is None or isinstance(value_of(match["number"]), str):
        return text
    words = (match["words"] or "").replace(".", " ").split()
    if not all(map(_UNIT_WORD.fullmatch, words)) or (
        match["space"] == "" and len(match["words"]) == 1
    ):
        return text  # 2m is a product
    return match["number"]


_WORDS = re.compile(
    r"(?=(?:[^A-Za-z]*[A-Za-z]){3})[A-Za-z .'-]+"
)  # two letters may be two variables


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text)).casefold()


def _keep_variables(text: str, gold: str) -> str:
    """Puts braces around the variables at the end, which math-verify may take for a unit: 2t would
    be 2.
    """
    end = re.search(r"(?<![A-Za-z\\])[a-hj-z]{1,2}$", text)
    if end and set(end[0]) <= set(re.sub(r"\\[A-Za-z]+", "", gold)):
        return f"{text[: end.start()]}{{{end[0]}}}"
    return text
