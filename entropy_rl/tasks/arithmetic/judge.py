"""Read the equations of a completion, and judge them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from entropy_rl.tasks.arithmetic.expressions import Expression
from entropy_rl.tasks.task import Verdict

# A number with what is attached to it, an operator, a line end, or anything else; alternatives
# begin with different characters, so that no text makes the search go back. An exclamation mark
# ends a sentence more often than it is a factorial.
_TOKEN = re.compile(
    r"[0-9]+(?:[.eE][0-9]+|,[0-9]{3}(?![0-9])|(?:/|\^|\*\*)[-({]?[0-9]+)*|[-+*=]|\n|[^\s0-9]"
)
_NUMBER = re.compile(r"-?[0-9]")  # the start of one
_TIMES = re.compile(
    r"\\(?:times|cdot)(?![A-Za-z])|\\\*|[\u00d7\u00b7\u22c5\u2217]"
    r"|(?<=[0-9])[xX](?=[0-9])|(?<=[0-9] )[xX](?= [0-9])"
)
# Bold type, boxes and alignment. 5**2 and 5 ** 2 are powers, **5 and 5** are not.
_TYPOGRAPHY = re.compile(
    r"(?<![0-9])\*\*(?=\S)|(?<=\S)\*\*(?![-({]?[0-9])|&|\\(?:boxed|fbox|text|textbf|mathbf|mathrm)\s*\{"
)
# What follows an operator that is none at the end: a bracket, a command, a variable (I and a are
# words), a decimal, or the rest of a power.
_OPERAND = re.compile(r"[-+]? ?(?:[(\[{\\.]|[b-zB-HJ-Z](?![A-Za-z]))|\* ?[-({]?[0-9]")

Equations = dict[str, str]  # left side -> value, both as written with single spaces


def read_equations(text: str) -> Equations:
    r"""Read the first equation of each left side, in linear time for any text.

    An equation is `A op B = N`, or with more terms, on one line; spaces are free, and `×`, `·`,
    `\times`, `\cdot`, `\*` and `x` are `*`. In a chain, such as `4 + 5 - 8 = 9 - 8 = 1`, the value
    of each side is the next side that is a number. Longer expressions are not searched for shorter
    ones: `15 * 9 = 135` has no `5 * 9`, and `45,000`, `45/2` or `45^2` is not the number 45. Bold
    type, `\boxed{}` and `&` are left out, and so is an operator without an operand, such as a dash.

    Args:
      text: The completion. Numbers are decimal and stay text, so that a long one costs nothing.

    Returns:
      Left sides and values, in the order of the text.
    """
    equations: Equations = {}
    sides: list[list[str]] = [[]]
    text = _TYPOGRAPHY.sub(" ", _TIMES.sub("*", text))
    for match in _TOKEN.finditer(text):
        token, side = match[0], sides[-1]
        ends_in_number = bool(side) and _is_number(side[-1])
        if _is_number(token):
            if side and side[-1] == "sign":
                side[-1] = f"-{token}"
                continue
            if not ends_in_number:
                side.append(token)
                continue
        elif token == "=" and ends_in_number:
            sides.append([])
            continue
        elif token in "+-*" and ends_in_number:
            side.append(token)
            continue
        elif token == "*" and not side and len(sides) > 1:  # = *45*
            continue
        elif token == "-" and side[-1:] != ["sign"] and _NUMBER.match(text, match.end()):
            # After an operator, after `=`, or at the start; with a space it is a bullet.
            side.append("sign")
            continue
        if not _OPERAND.match(text, match.start()):
            _drop_operator(side)
        _add(equations, sides)
        sides = [[token]] if _is_number(token) else [[]]
    _drop_operator(sides[-1])
    _add(equations, sides)
    return equations


def _is_number(token: str) -> bool:
    return _NUMBER.match(token) is not None


def _drop_operator(side: list[str]) -> None:
    """Remove an operator at the end of a side, which has no operand."""
    if side and not _is_number(side[-1]):
        side.pop()


def _add(equations: Equations, sides: list[list[str]]) -> None:
    """Add the equations of a chain, unless there are earlier ones with their left sides."""
    found, value = [], None
    for side in reversed(sides):
        if len(side) == 1 and _is_number(side[0]):
            value = side[0]
        elif side and value is not None:
            found.append((" ".join(side), value))
    for left, of_left in reversed(found):
        equations.setdefault(left, of_left)


def evaluate(expression: Expression, equations: Equations) -> bool | None:
    """Return whether an expression is evaluated correctly; None if it has no equation.

    Either its own equation is right, or all equations of an evaluation in steps of two numbers are:
    `4 + 5 - 8 = 1`, or `4 + 5 = 9` and `9 - 8 = 1`.
    """
    whole = equations.get(str(expression))
    steps = [equations.get(left) for left, _ in expression.steps]
    if whole is None and steps[0] is None:
        return None
    return whole == str(expression.value) or steps == [value for _, value in expression.steps]


def judge_one(question: Sequence[Expression], completion: str) -> Verdict:
    """Judge one completion."""
    equations = read_equations(completion)
    found = [evaluate(expression, equations) for expression in question]
    if not any(is_right is not None for is_right in found):
        return Verdict.UNPARSABLE
    return Verdict.CORRECT if all(found) else Verdict.WRONG


def probe_all(
    questions: Sequence[Sequence[Expression]], completions: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Skill metrics as sums over all completions: name -> (numerator, denominator)."""
    asked = answered = 0
    right: dict[str, list[int]] = {"products": [0, 0], "sums": [0, 0], "differences": [0, 0]}
    for question, completion in zip(questions, completions, strict=True):
        equations = read_equations(completion)
        for expression in question:
            asked += 1
            is_right = evaluate(expression, equations)
            if is_right is not None:
                answered += 1
                count = right[_operation(expression)]
                count[0] += is_right
                count[1] += 1
    total = sum(count[0] for count in right.values())
    return {"equations": (total, answered), "answered": (answered, asked)} | {
        name: (count[0], count[1]) for name, count in right.items()
    }


def _operation(expression: Expression) -> str:
    if "*" in expression.operators:
        return "products"
    return "differences" if "-" in expression.operators else "sums"
