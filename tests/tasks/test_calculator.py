"""The calculator is exact, and no text makes it slow."""

from fractions import Fraction
from random import Random

import pytest

from entropy_rl.tasks.tools.calculator import calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("17 * 23", "391"),
        ("(17 + 4) * 3 / 2", "31.5"),
        ("2 ^ 10 - 2**3", "1016"),
        ("2 ^ 3 ^ 2", "512"),
        ("-2 ^ 2", "-4"),
        ("2 ^ -2", "0.25"),
        ("1 / 3", "1/3 (about 0.333333333333)"),
        ("-2 / 3", "-2/3 (about -0.666666666667)"),
        ("1 / 10^13", "1/10000000000000 (about 1e-13)"),
        ("-2 / (3 * 10^12)", "-1/1500000000000 (about -6.66667e-13)"),
        ("1 / 30000", "1/30000 (about 0.000033333333)"),
        ("-1 / (3 * 10^12)", "-1/3000000000000 (about -3.33333e-13)"),
        ("5 + 1 / 10^14", "500000000000001/100000000000000 (about 5)"),
        ("0.1 + 0.2", "0.3"),
        (".5 × 4 − 8 ÷ 2", "-2"),  # noqa: RUF001
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("7.5 % 2", "1.5"),
        ("--3", "3"),
        ("0 ^ 0", "1"),
        ("0 ^ 5", "0"),
        ("(-1) ^ 999999999999", "-1"),
        ("1 ^ 10000000000", "1"),
        ("1 / 1000000000000", "0.000000000001"),
        ("9" * 900 + " - " + "9" * 90, str(int("9" * 900) - int("9" * 90))),
    ],
)
def test_values_are_exact(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "a number must come before 'the end'"),
        ("1 +", "a number must come before 'the end'"),
        ("1 2", "an operator must come before '2'"),
        ("(1", "a parenthesis must be closed"),
        ("1)", r"an operator must come before '\)'"),
        ("* 2", r"a number must come before '\*'"),
        ("sqrt(4)", "an expression must have no 's'"),
        ("__import__('os')", "an expression must have no '_'"),
        ("²", "an expression must have no"),
        ("1 / 0", "the divisor must not be 0"),
        ("5 % (1 - 1)", "the divisor must not be 0"),
        ("0 ^ -1", "the divisor must not be 0"),
        ("2 ^ 0.5", "an exponent must be an integer"),
        ("9^9^9^9^9", "the numbers must stay below 2"),
        ("10^1000 * 10^1000", "the numbers must stay below 2"),
        ("(" * 400 + "1", "at most 50 levels"),
        ("-" * 900 + "1", "at most 50 levels"),
        ("1+" * 600, "at most 1000 characters"),
    ],
)
def test_what_is_no_expression_or_too_large_is_an_error(expression, message):
    with pytest.raises(ValueError, match=message):
        calculator(expression)


def test_random_expressions_have_the_values_that_python_finds():
    random = Random(0)
    for _ in range(300):
        numbers = [str(random.randint(0, 99)) for _ in range(5)]
        operators = [random.choice(["+", "-", "*"]) for _ in range(4)] + [""]
        text = " ".join(f"{n} {op}" for n, op in zip(numbers, operators, strict=True))
        assert Fraction(calculator(text)) == eval(text)
        nested = f"({text}) * -({text}) - {numbers[0]}"
        assert Fraction(calculator(nested)) == eval(nested)
