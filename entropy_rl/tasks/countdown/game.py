"""Rules of the game: numbers, legal steps, exact difficulty, and the assignment to splits.

A pool of n numbers is reduced to one number in n - 1 steps. A step replaces two numbers a, b of the
pool by `a op b`. It is legal if

  * operands and result are in 1..49,
  * the larger operand is first (also if the operator commutes, so that a step has one form), and
  * it is not a multiplication by one, which would not change the number.

Two steps with the same text are one step, even if a number is in the pool twice.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

MAX_INPUT = 10
MAX_NUMBER = 49

# Tenths of the hash range. A multiset of inputs is in one split, for all targets.
SPLITS = {
    "test": (0, 1),
    "validation": (2,),
    "train": (3, 4, 5),
    "sft": (6, 7, 8, 9),
}


class Step(NamedTuple):
    """`a op b = result`, legal."""

    a: int
    op: str
    b: int
    result: int


def calculate(a: int, op: str, b: int) -> int:
    """The value of `a op b`, legal or not."""
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    return a * b


def is_legal(a: int, op: str, b: int) -> bool:
    """Whether the rules admit `a op b`, without regard to the pool."""
    return a >= b >= 1 and not (op == "*" and b == 1) and 1 <= calculate(a, op, b) <= MAX_NUMBER


# STEPS[a][b]: the legal steps on a >= b, built once so that lists of steps share elements.
STEPS: list[list[tuple[Step, ...]]] = [
    [
        tuple(Step(a, op, b, calculate(a, op, b)) for op in "+-*" if is_legal(a, op, b))
        for b in range(a + 1)
    ]
    for a in range(MAX_NUMBER + 1)
]  # fmt: skip


@functools.lru_cache(maxsize=1 << 14)
def legal_steps(pool: tuple[int, ...]) -> tuple[Step, ...]:
    """The distinct legal steps from a pool.

    Args:
      pool: The numbers, ascending.

    Returns:
      The steps in a fixed order; empty if only one number is left or all results are out of range.
    """
    pairs = dict.fromkeys(itertools.combinations(pool, 2))
    return tuple(step for small, large in pairs for step in STEPS[large][small])


def take_step(pool: Sequence[int], step: Step) -> list[int]:
    """The pool after a step, as printed: the result, then the rest in its order."""
    rest = list(pool)
    rest.remove(step.a)
    rest.remove(step.b)
    return [step.result, *rest]


def target_probabilities(pool: Sequence[int]) -> np.ndarray:
    """p1 of all targets: the probability that one random legal attempt ends on each.

    An attempt draws uniformly from the legal steps until one number is left or no step is legal.
    Computed by enumeration of all attempts; exact up to rounding.

    Args:
      pool: The numbers, in any order.

    Returns:
      f64[MAX_NUMBER + 1], indexed by target. Sums to less than 1 if attempts can get stuck.
    """
    pool = tuple(sorted(pool))
    # Small pools recur for many inputs and are cached; large ones do not.
    return _small_probabilities(pool) if len(pool) <= 3 else _probabilities(pool)


def _probabilities(pool: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(MAX_NUMBER + 1)
    if len(pool) == 1:
        total[pool[0]] = 1.0
        return total
    steps = legal_steps(pool)
    for step in steps:
        total += target_probabilities(take_step(pool, step))
    return total / max(len(steps), 1)


_small_probabilities = functools.cache(_probabilities)


def split_of(numbers: Sequence[int]) -> str:
    """The split of a multiset of inputs; the same on every machine."""
    tenth = zlib.crc32(bytes(sorted(numbers))) % 10
    return next(split for split, tenths in SPLITS.items() if tenth in tenths)


@functools.cache
def multisets(split: str, size: int) -> tuple[tuple[int, ...], ...]:
    """All multisets of `size` inputs in a split, each ascending, in lexicographic order."""
    everything: Iterator[tuple[int, ...]] = itertools.combinations_with_replacement(
        range(1, MAX_INPUT + 1), size
    )
    return tuple(numbers for numbers in everything if split_of(numbers) == split)
