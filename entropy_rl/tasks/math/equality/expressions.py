"""Expressions compared by math-verify and sympy, within budgets that do not depend on time."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from entropy_rl.tasks.math.equality.plain_numbers import value_of

ROUNDING = Fraction(1, 100_000)  # relative: 0.000001 is no rounding of 1/1048576
_ROUGHLY = 0.05  # relative: 300 is said to be about 100 pi
_DIGITS = 120
_MAX_DIGITS = 50_000  # of numbers that are computed exactly
_MORE_DIGITS = 1_500  # of a difference that is zero within `_DIGITS`


class OverBudget(Exception):
    """The comparison would take more work than any answer needs."""


def same_expression(gold: str, answer: str, heavy: bool) -> bool | None:
    """Whether math-verify or sympy finds two expressions equal.

    Args:
      gold: The right answer, tidied.
      answer: The given answer, tidied.
      heavy: Whether a symbolic proof could expand too many terms.

    Returns:
      The comparison; None if the given answer cannot be parsed.

    Raises:
      OverBudget: If values do not decide and a symbolic proof is too heavy.
    """
    from sympy import Expr, Integer

    _, verify = load()
    right, given = _read_pair(gold, answer)
    if not given:
        return None
    if not right:
        return False
    for compare in (_compare_statements, _compare_symbols, _compare_values):
        same = compare(right[0], given[0])
        if same is not None:
            return same
    if heavy:
        raise OverBudget
    if _same_for_positive(right[0], given[0]):
        return True
    if all(isinstance(side, Expr) for side in (right[0], given[0])) and (
        _is_variable(right[0]) or _is_variable(given[0])
    ):
        right, given = [right[0] - given[0]], [Integer(0)]  # verify compares a symbol by its name
    # The comparison is not symmetric: the right answer comes first.
    return verify(right, given)


def _read_pair(gold: str, answer: str) -> tuple[list, list]:
    """Parse two answers, with i as the imaginary unit, and C and c as one constant added."""
    from sympy import Add, I

    parse, _ = load()
    right, given = parse(gold), parse(answer)
    if "i" in _symbols(right) or "i" in _symbols(given):
        # Symbols without assumptions: beside i they need not be real.
        right, given = (_replace(parse(side, real=False), "i", I) for side in (gold, answer))
    a, b = _symbols(right), _symbols(given)
    one_case = "C" in a and "c" in b and not ("c" in a or "C" in b)
    if one_case and isinstance(given[0], Add) and b["c"] in given[0].args:
        given = _replace(given, "c", a["C"])  # the constant of integration
    return right, given


def _symbols(side: list) -> dict[str, Any]:
    """The free symbols of a parsed answer by their names."""
    from sympy import Basic

    return {x.name: x for x in side[0].free_symbols} if side and isinstance(side[0], Basic) else {}


def _replace(side: list, name: str, value: Any) -> list:
    from sympy import Eq, Expr, Tuple, evaluate
    from sympy import FiniteSet as Set

    symbol = _symbols(side).get(name)
    if symbol is None or not isinstance(side[0], Expr | Eq | Tuple | Set):
        return side  # intervals and inequalities have no imaginary ends
    try:
        with evaluate(False):  # powers may be too large to be computed
            return [side[0].xreplace({symbol: value})]
    except (TypeError, ValueError):
        return side  # i is no number here: the index of a sum, or less than n


def _is_variable(side: Any) -> bool:
    """Whether an expression is a variable rather than a word."""
    from sympy import Symbol

    return isinstance(side, Symbol) and not _is_word(side.name)


def _is_word(name: str) -> bool:
    from latex2sympy2_extended.symbols import GREEK_LETTER_MAP

    return len(name) > 1 and name.isalpha() and name not in GREEK_LETTER_MAP.values()


def _compare_statements(gold: Any, given: Any) -> bool | None:
    """Compare inequalities between numbers, such as 5<6, and those with finite sets; else None.

    math-verify takes 5<6 for the empty set, and 1<x<2 for the set of 1 and 2.
    """
    from sympy import And, EmptySet, Eq, FiniteSet, Or
    from sympy.core.relational import Relational

    sides = [
        side
        for side in (gold, given)
        if isinstance(side, Relational | And | Or) and not isinstance(side, Eq)
    ]
    is_finite = any(side == EmptySet or isinstance(side, FiniteSet) for side in (gold, given))
    if not is_finite and all(side.free_symbols for side in sides):
        return None
    if len(sides) < 2 or not all(isinstance(side, Relational) for side in sides):
        return False if sides else None
    return bool(given in (gold, gold.reversed))


def _compare_symbols(gold: Any, given: Any) -> bool | None:
    """Compare two symbols: words without case; None if one is an expression."""
    from sympy import Symbol

    if not (isinstance(gold, Symbol) and isinstance(given, Symbol)):
        return None
    a, b = gold.name, given.name
    return a.casefold() == b.casefold() if _is_word(a) and _is_word(b) else a == b


@functools.cache
def load() -> tuple[Callable, Callable]:
    """Return a parser of LaTeX and math-verify's `verify` without time limits.

    The first call takes seconds. The parser is the one inside `math_verify.parse`, whose search for
    answers in a text, units and last equation of what cannot be parsed would drop parts of an
    answer. It returns a list of one expression, or of the text if that cannot be parsed.
    """
    import logging

    from latex2sympy2_extended.latex2sympy2 import (
        ConversionConfig,
        NormalizationConfig,
        latex2sympy,
        normalize_latex,
    )
    from math_verify import verify

    # It warns once per module that it has no time limit, and prints what it cannot parse.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    spelling = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    symbols = ConversionConfig(lowercase_symbols=False)

    @functools.lru_cache(maxsize=64)  # a right answer is compared with a group of completions
    def read(text: str, real: bool = True) -> list:
        text = re.sub(r"\\l(?:or|and)(?![A-Za-z])", ", ", text)
        text = normalize_latex(_CAPITAL_I.sub(_name_current, text), spelling)
        try:
            parsed = latex2sympy(
                text,
                is_real=real or None,
                normalization_config=None,
                conversion_config=symbols,
            )
            return [parsed]
        except MemoryError:
            raise
        except Exception:  # it raises errors of any kind
            return [text] if text else []

    def compare(right: list, given: list) -> bool:
        return verify(right, given, timeout_seconds=None, allow_set_relation_comp=True)

    # Imports and caches that are filled at first use do not count towards an answer.
    for gold, answer in ((r"\sin^2 x+\cos^2 x", "1"), ("[0,1)", r"0\le x<1"), ("x", "abc")):
        compare(read(gold), read(answer))
    return read, compare


# The parser takes I for the imaginary unit, and drops its exponent.
_CAPITAL_I = re.compile(r"\\(?:text|math[a-z]+)\s*\{[^{}]*\}|\\[A-Za-z]+|I")


def _name_current(match: re.Match[str]) -> str:
    return r"\text{I}" if match[0] == "I" else match[0]


def is_near(value: str, approximation: str, heavy: bool) -> bool:
    """Whether a number may be a rounded value of an expression.

    Args:
      value: An expression, tidied.
      approximation: A plain number, tidied.
      heavy: Whether the expression could be too large to evaluate.

    Returns:
      The comparison; True for an expression with variables or too large, False for what is none.
    """
    from sympy import Expr

    if heavy:
        return True
    parse, _ = load()
    parsed = parse(value)
    if not parsed or not isinstance(parsed[0], Expr):
        return False
    if parsed[0].free_symbols:
        return True
    try:
        exact, given = float(parsed[0].evalf()), float(value_of(approximation))
    except MemoryError:
        raise
    except Exception:  # sympy raises errors of any kind: there is no value to compare
        return True
    unit = 10.0 ** -len(approximation.partition(".")[2])
    return abs(exact - given) <= max(unit, _ROUGHLY * abs(exact))


def _compare_values(gold: Any, given: Any) -> bool | None:
    """Compare two expressions by their values; with variables, at one point.

    It avoids a proof by `simplify`, which may not terminate, for what is wrong. It distinguishes
    small numbers, of which math-verify's 6 decimals make 2^{-30} equal to 0.0, and large ones that
    differ by one. It does not depend on sympy's caches, as math-verify's comparison of decimals
    does.

    Returns:
      False if the values differ, True for equal constants, None if values do not decide.
    """
    from sympy import Expr, Float, Rational, Symbol, log

    if not all(isinstance(side, Expr) for side in (gold, given)):
        return None
    if any(isinstance(side, Symbol) and not _is_variable(side) for side in (gold, given)):
        return None  # a word is no product of its letters
    # The same value for the same name: symbols of the two sides may have other assumptions.
    variables = gold.free_symbols | given.free_symbols
    point = {x: Rational(zlib.crc32(x.name.encode()) % 1000 + 501, 1000) for x in variables}
    try:
        if variables:
            a, b = gold.evalf(50, subs=point), given.evalf(50, subs=point)
            if not (_is_finite(a) and _is_finite(b)):
                return None if _is_same_infinity(a, b) else False
            noise = 1e-15 if gold.has(Float) or given.has(Float) else 1e-40
            return False if abs(a - b) > max(abs(a) * float(ROUNDING), noise) else None
        a, b = gold.evalf(), given.evalf()
        if not (_is_finite(a) and _is_finite(b)):
            return _is_same_infinity(a, b)
        if gold.has(Float) or given.has(Float):
            # A decimal may be a rounding of the right answer.
            if abs(a - b) > abs(a) * float(ROUNDING):
                return False
            return True if abs(a - b) <= abs(a) * 1e-13 else None
        if abs(a - b) > max(abs(a) * float(ROUNDING), 1e-30):
            return False
        sizes = [int(log(abs(side), 10).evalf()) for side in (a, b) if side != 0]
        if max([0, *sizes]) > _MAX_DIGITS:
            return None
        a, b = gold.doit(), given.doit()
        if a.is_Rational and b.is_Rational:
            return bool(a == b)
        # Enough digits for all before the decimal point, and for what is small next to one.
        digits = _DIGITS + max([0, *sizes])
        close = abs(a.evalf(digits) - b.evalf(digits))
        if close > (min(abs(a.evalf(15)), 1) or 1) * Rational(10) ** -(_DIGITS // 2):
            return False
        return _is_zero(a - b, max([0, *sizes]))
    except MemoryError:
        raise
    except Exception:  # sympy raises errors of any kind: there is no value to compare
        return None


def _is_finite(value: Any) -> bool:
    from sympy import S

    return not value.has(S.Infinity, S.NegativeInfinity, S.ComplexInfinity, S.NaN)


def _is_same_infinity(a: Any, b: Any) -> bool:
    """Whether two values, of which one is infinite or NaN, are equal; NaN equals nothing."""
    from sympy import S

    return bool(a == b) and not a.has(S.NaN)


def _is_zero(difference: Any, size: int) -> bool:
    """Whether a difference of constants that is tiny is zero: 42 + e^{-500} is not 42."""
    from sympy import Rational

    if difference.is_Rational:
        return bool(difference == 0)
    if not difference.is_Add:  # without cancellation the value has all its digits
        return bool(difference.evalf(15) == 0)
    digits = _MORE_DIGITS + size
    parts = [term.evalf(digits) for term in difference.args]
    return bool(abs(sum(parts)) < Rational(10) ** -(_MORE_DIGITS - 100))


def _same_for_positive(gold: Any, given: Any) -> bool:
    r"""Whether two expressions agree where all variables are positive and both are real elsewhere.

    \sqrt{1/n} is \frac{1}{\sqrt{n}} where n counts something, but |x| is not x.
    """
    from sympy import Abs, Dummy, Expr, Pow, Rational, expand

    if not all(isinstance(side, Expr) for side in (gold, given)):
        return False
    names = sorted({x.name for x in gold.free_symbols | given.free_symbols})
    roots = [p for side in (gold, given) for p in side.atoms(Pow) if p.exp.is_Rational]
    roots = [p for p in roots if p.exp.q % 2 == 0]
    if not names or not roots:
        return False
    try:
        positive = {name: Dummy(name, positive=True) for name in names}
        sides = [side.xreplace({x: positive[x.name] for x in side.free_symbols})
                 for side in (gold, given)]  # fmt: skip
        if expand(sides[0].doit() - sides[1].doit()) != 0:
            return False
        for signs in range(1, min(1 << len(names), 16)):
            values = {
                name: Rational((-1 if signs >> i & 1 else 1) * (7 + 4 * i), 5)
                for i, name in enumerate(names)
            }
            at = [side.evalf(30, subs={x: values[x.name] for x in side.free_symbols})
                  for side in (gold, given)]  # fmt: skip
            bases = [p.base.evalf(30, subs={x: values[x.name] for x in p.free_symbols})
                     for p in roots]  # fmt: skip
            if any(not base.is_real or base < 0 for base in bases):
                continue  # not defined over the reals
            if any(not side.is_real for side in at) or Abs(at[0] - at[1]) > 1e-20:
                return False
    except MemoryError:
        raise
    except Exception:  # sympy raises errors of any kind: there is no value to compare
        return False
    return True
