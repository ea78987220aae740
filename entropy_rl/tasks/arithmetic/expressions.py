"""Expressions of a question: how they are drawn and written, and which ones are the same."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from random import Random

SPLITS = ("train", "validation", "test", "unseen")
# `unseen` has other kinds of questions; its questions are also apart from those of training.
_SHARES = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}


@dataclasses.dataclass(frozen=True)
class Expression:
    """Numbers joined by operators, evaluated from left to right: a product, or sums only.

    Attributes:
      numbers: The numbers, >= 0.
      operators: `*`, `+` or `-` between them.
    """

    numbers: tuple[int, ...]
    operators: str

    def __str__(self) -> str:
        rest = zip(self.operators, self.numbers[1:], strict=True)
        return f"{self.numbers[0]}" + "".join(f" {op} {number}" for op, number in rest)

    @property
    def value(self) -> int:
        """The value of the expression."""
        return int(self.steps[-1][1])

    @property
    def steps(self) -> tuple[tuple[str, str], ...]:
        """The equations of an evaluation in steps of two numbers, each as (left side, value)."""
        steps, total = [], self.numbers[0]
        for op, number in zip(self.operators, self.numbers[1:], strict=True):
            left = f"{total} {op} {number}"
            total = _APPLY[op](total, number)
            steps.append((left, f"{total}"))
        return tuple(steps)

    @property
    def key(self) -> tuple[str, ...]:
        """A value that is equal for expressions that differ by the order of their terms only."""
        first = "*" if "*" in self.operators else "+"
        signs = first + self.operators
        # `a - 0` is `a + 0`.
        terms = zip(signs, self.numbers, strict=True)
        return tuple(sorted(f"{'+' if op == '-' and not n else op}{n}" for op, n in terms))


_APPLY = {"*": lambda a, b: a * b, "+": lambda a, b: a + b, "-": lambda a, b: a - b}


@dataclasses.dataclass(frozen=True)
class ExpressionType:
    """Expressions of one type, uniformly drawn.

    Attributes:
      operators: The operators to draw from.
      terms: Count of numbers.
      digits: Most digits of a number. The count of digits is drawn first, so that short numbers
        are as frequent as long ones.
      examples: Expressions of worked examples, taken in turn.
    """

    operators: str
    terms: int
    digits: int
    examples: tuple[tuple[tuple[int, ...], str], ...]

    def draw(self, random: Random) -> Expression:
        """Draw an expression."""
        numbers = []
        for _ in range(self.terms):
            digits = random.randint(1, self.digits)
            numbers.append(random.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))
        operators = "".join(random.choice(self.operators) for _ in range(self.terms - 1))
        return Expression(tuple(numbers), operators)

    def example(self, index: int) -> Expression:
        """The worked example of an index."""
        return Expression(*self.examples[index % len(self.examples)])


TYPES = {
    "product": ExpressionType(
        "*", 2, 1, (((5, 9), "*"), ((4, 7), "*"), ((8, 3), "*"), ((6, 2), "*"))
    ),
    "sum": ExpressionType(
        "+-", 2, 1,
        (((7, 9), "+"), ((3, 8), "-"), ((9, 4), "-"), ((5, 6), "+"), ((2, 6), "-"), ((8, 4), "+")),
    ),
    "sum_2_digits": ExpressionType(
        "+-", 2, 2, (((34, 52), "+"), ((17, 46), "-"), ((60, 8), "-"), ((5, 71), "+"))
    ),
    "sum_3_terms": ExpressionType(
        "+-", 3, 1, (((4, 8, 3), "+-"), ((2, 9, 5), "-+"), ((7, 1, 6), "-+"), ((3, 5, 9), "++"))
    ),
}  # fmt: skip

Question = tuple[Expression, ...]
QuestionKey = tuple[tuple[str, ...], ...]


def draw_question(types: Sequence[str], random: Random) -> Question:
    """Draw a question with one expression of each type, all different.

    Equal ones are drawn again; each type has far more expressions than a question can have.
    """
    question: list[Expression] = []
    for name in types:
        expression = TYPES[name].draw(random)
        while expression.key in {other.key for other in question}:
            expression = TYPES[name].draw(random)
        question.append(expression)
    return tuple(question)


def question_key(question: Question) -> QuestionKey:
    """A value that is equal for questions that differ by the order of expressions or terms only."""
    return tuple(sorted(expression.key for expression in question))


def is_in_split(key: QuestionKey, split: str) -> bool:
    """Whether a question may be in a split: its key alone decides, so that splits are disjoint."""
    place = zlib.crc32(repr(key).encode()) % 10
    return place in _SHARES["test" if split == "unseen" else split]


@functools.cache
def example_questions(types: tuple[str, ...], count: int) -> tuple[Question, ...]:
    """The questions of worked examples, each with one expression of each type."""
    used = dict.fromkeys(types, 0)
    questions = []
    for _ in range(count):
        question = []
        for name in types:
            question.append(TYPES[name].example(used[name]))
            used[name] += 1
        questions.append(tuple(question))
    return tuple(questions)


def write_question(question: Question) -> str:
    """For example `Calculate 5 * 9, 2 * 7 and 7 + 9.`"""
    *first, last = map(str, question)
    return f"Calculate {', '.join(first)} and {last}." if first else f"Calculate {last}."


def write_solution(question: Question) -> str:
    """For example `5 * 9 = 45. 7 + 9 = 16. Answer: 45, 16`"""
    steps = [f"{left} = {value}." for e in question for left, value in e.steps]
    return " ".join([*steps, f"Answer: {', '.join(str(e.value) for e in question)}"])
