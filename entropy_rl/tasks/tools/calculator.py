"""An exact calculator: rational arithmetic with bounds, without evaluating code."""

from __future__ import annotations

import decimal
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

_MAX_CHARACTERS = 1000  # of an expression
_MAX_DEPTH = 50  # of parentheses and signs
_MAX_BITS = 4096  # of numerators and denominators
_MAX_DECIMALS = 12  # of a quotient that is shown as a decimal number
_LEAST_DIGITS = 6  # of an approximation; a small number has an exponent

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|(\*\*|//|[-+*/%^()])|(\S))")
_SAME = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})  # noqa: RUF001


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression exactly.

    Args:
      expression: Numbers, parentheses and + - * / // % ^, such as (17 + 4) * 3 / 2.

    Raises:
      ValueError: It is no such expression, divides by zero, or its numbers become too large.
    """
    if len(expression) > _MAX_CHARACTERS:
        raise ValueError(f"the expression must have at most {_MAX_CHARACTERS} characters")
    return show(_Parser(expression.translate(_SAME)).value())


def show(value: Fraction) -> str:
    """Write a number: as a decimal number where that is exact and short, else as a fraction with
    an approximation.
    """
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**_MAX_DECIMALS
    is_exact = scaled.denominator == 1
    if not is_exact and abs(scaled) < 10**_LEAST_DIGITS:
        with decimal.localcontext(prec=_LEAST_DIGITS):
            small = Decimal(value.numerator) / value.denominator
        return f"{value} (about {small.normalize():e})"
    digits = f"{abs(round(scaled)):0{_MAX_DECIMALS + 1}d}"
    sign = "-" if value < 0 else ""
    text = f"{sign}{digits[:-_MAX_DECIMALS]}.{digits[-_MAX_DECIMALS:]}".rstrip("0").rstrip(".")
    return text if is_exact else f"{value} (about {text})"


class _Parser:
    """Recursive descent over sums, products, signs and powers."""

    def __init__(self, text: str):
        self._tokens: list[str] = []
        for number, operator, other in _TOKEN.findall(text):
            if other:
                raise ValueError(f"an expression must have no {other!r}")
            self._tokens.append(number or operator)
        self._place, self._depth = 0, 0

    def value(self) -> Fraction:
        value = self._sum()
        if (token := self._next()) is not None:
            raise ValueError(f"an operator must come before {token!r}")
        return value

    def _next(self, *wanted: str) -> str | None:
        """Take the next token, if it is one of those wanted."""
        token = self._tokens[self._place] if self._place < len(self._tokens) else None
        if token is None or (wanted and token not in wanted):
            return None
        self._place += 1
        return token

    def _sum(self) -> Fraction:
        return self._chain(self._product, "+", "-")

    def _product(self) -> Fraction:
        return self._chain(self._signed, "*", "/", "//", "%")

    def _chain(self, operand: Callable[[], Fraction], *operators: str) -> Fraction:
        """Operands that are joined from left to right."""
        value = operand()
        while (operator := self._next(*operators)) is not None:
            value = _apply(operator, value, operand())
        return value

    def _signed(self) -> Fraction:
        sign = self._next("-", "+")
        if sign is None:
            return self._power()
        value = self._nested(self._signed)
        return -value if sign == "-" else value

    def _power(self) -> Fraction:
        base = self._atom()
        if self._next("^", "**") is None:
            return base
        return _power(base, self._nested(self._signed))

    def _atom(self) -> Fraction:
        token = self._next()
        if token == "(":
            value = self._nested(self._sum)
            if self._next(")") is None:
                raise ValueError("a parenthesis must be closed")
            return value
        if token is None or not (token[0].isdigit() or token[0] == "."):
            raise ValueError(f"a number must come before {token or 'the end'!r}")
        return Fraction(token)

    def _nested(self, rule: Callable[[], Fraction]) -> Fraction:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"an expression must have at most {_MAX_DEPTH} levels")
        value = rule()
        self._depth -= 1
        return value


def _apply(operator: str, a: Fraction, b: Fraction) -> Fraction:
    if operator in ("/", "//", "%") and b == 0:
        raise ValueError("the divisor must not be 0")
    if operator in ("//", "%"):
        quotient = a // b
        return _bounded(Fraction(quotient) if operator == "//" else a - b * quotient)
    results = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}
    return _bounded(results[operator]())


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("an exponent must be an integer")
    if base == 0 and exponent < 0:
        raise ValueError("the divisor must not be 0")
    if _bits(base) * abs(exponent.numerator) > 2 * _MAX_BITS and abs(base) != 1:
        raise ValueError("the numbers must stay below 2^4096")
    if abs(base) == 1 or base == 0:  # of any exponent
        return base ** (exponent.numerator % 2 or 2 * (exponent != 0))
    return _bounded(base**exponent.numerator)


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > _MAX_BITS:
        raise ValueError(f"the numbers must stay below 2^{_MAX_BITS}")
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
