"""Equality of two answers: labels, chains of equations, structure, units, then expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from entropy_rl.tasks.math.equality.angles import read_angles
from entropy_rl.tasks.math.equality.expressions import ROUNDING, is_near, same_expression
from entropy_rl.tasks.math.equality.forms import (
    compare_clock,
    compare_words,
    is_words,
    letters_of,
    read_congruence,
    read_label,
)
from entropy_rl.tasks.math.equality.latex import is_name, read_chain, split_top
from entropy_rl.tasks.math.equality.lost import lost_parts
from entropy_rl.tasks.math.equality.plain_numbers import is_rounding, rounds_to, value_of
from entropy_rl.tasks.math.equality.refusals import is_heavy, refuse
from entropy_rl.tasks.math.equality.relations import Solution, read_solution
from entropy_rl.tasks.math.equality.structure import (
    distinct,
    is_plain,
    read_matrix,
    read_named,
    read_parts,
    read_vector,
    row_ends,
    squeeze,
)
from entropy_rl.tasks.math.equality.typography import tidy
from entropy_rl.tasks.math.equality.units import compatible, read_quantity
from entropy_rl.tasks.task import Verdict

_MAX_PARTS = 40  # of a list that is compared part by part


def same_answer(gold: str, answer: str) -> bool | None:
    """Whether two answers are the same.

    Args:
      gold: The right answer.
      answer: The given answer.

    Returns:
      The comparison; None if the given answer cannot be read.
    """
    is_text = any(
        re.fullmatch(r"\\text\s*\{[A-Za-z ]+\}\.?", side.strip()) for side in (gold, answer)
    )
    gold, answer = tidy(gold), tidy(answer)
    if is_text and is_words(gold) and is_words(answer):
        return letters_of(gold) == letters_of(answer)
    decided = _compare_labels(gold, answer)
    if decided is not None:
        return decided
    gold, answer = _content(gold), _content(answer)
    congruence = read_congruence(gold), read_congruence(answer)
    if None not in congruence:
        return congruence[0] == congruence[1]
    names, value, rounded = read_chain(answer)
    if len(names) == 1 and _VARIABLE.fullmatch(value) and not is_name(names[0]):
        names, value = [value], names[0]  # 42 = x
    while names and is_rounding(names[-1], value):  # 1/3 = 0.333
        rounded.append(value)
        value = names.pop()
    gold_names, gold_value, _ = read_chain(gold)
    for name in names[1:] if gold_names else names:
        # math-verify reads the last part only, so that 41 = 42 would be 42.
        if not (is_name(name) and not gold_names) and not _equal(value, name):
            return False
    if not all(_may_round(value, text) for text in rounded):
        return False
    is_variable = len(gold_names) == 1 and _VARIABLE.fullmatch(gold_names[0].strip()) is not None
    if not (gold_names and names):
        return _equal(gold_value if is_variable else gold, tidy(value))
    same_name = len(gold_names) == 1 and squeeze(gold_names[0]) == squeeze(names[0])
    same = _equal(gold_value, tidy(value)) if same_name else None
    if same:
        return True
    whole = f"{names[0]}={value}"
    if lost_parts(gold) != lost_parts(whole):
        return False
    if same_name:
        return False if is_variable else same
    return _parsed(gold, whole)


def _may_round(value: str, text: str) -> bool:
    r"""Whether what follows \approx is a number that may be the approximation of a value."""
    exact, given = read_quantity(tidy(value)), read_quantity(tidy(text))
    number = tidy(given.value)
    if not isinstance(value_of(number), Fraction) or not compatible(exact.unit, given.unit):
        return False
    right = tidy(exact.value)
    if isinstance(value_of(right), Fraction):
        return exact.percent == given.percent and rounds_to(right, number)
    return not is_words(right) and is_near(right, number, is_heavy(right))


_VARIABLE = re.compile(r"[A-Za-z](?:'*|\^\{-1\})(?:\([A-Za-z]\))?")


# --------------------------------------------------------------------------------------------------
# Choices and congruences
# --------------------------------------------------------------------------------------------------


_CHOICES = re.compile(r"[A-J]{1,10}")  # labels alone, written in either case; e and i are numbers
# Another label, or a letter alone behind a separator.
_SECOND_LABEL = re.compile(
    r"\([A-J]\)|^(?:[,;/&]|\\l(?:or|and))?\s*[A-J](?:[).:]|\s*$)"
    r"|(?:(?i:option|choice)\s+|\\text\s*\{\s*)[A-J](?![A-Za-z])"
)


def _compare_labels(gold: str, answer: str) -> bool | None:
    """Compare choices if the right answer is one; None if it is none."""
    if _CHOICES.fullmatch(gold) and gold == answer.upper() and answer not in ("e", "i"):
        return True
    right, given = read_label(gold), read_label(answer)
    if right is None or given is None:
        return None
    if _SECOND_LABEL.search(given[1]):
        return False  # two choices
    if right[1] and given[1] and not _equal(right[1], given[1]):
        return False
    return right[0] == given[0]


def _content(text: str) -> str:
    """The answer without the label of a choice before it."""
    label = read_label(text)
    return label[1] if label and label[1] else text


# --------------------------------------------------------------------------------------------------
# Structure
# --------------------------------------------------------------------------------------------------


def _equal(gold: str, answer: str, depth: int = 0) -> bool | None:
    """Equality of two tidied answers that are no chains."""
    a, b = value_of(gold), value_of(answer)
    if str(a) == str(b):
        return True
    numbers = isinstance(a, Fraction) and isinstance(b, Fraction)
    if numbers and (a.denominator == 1 or abs(a - b) > abs(a) * ROUNDING):
        return False
    refused = refuse(gold, answer)
    if refused is not None:
        return None if refused is Verdict.UNPARSABLE else False
    for compare in (compare_clock, compare_words, _compare_quantities):
        same = compare(gold, answer)
        if same is not None:
            return same
    if depth < 3:
        for compare in (_compare_solutions, _compare_collections):
            same = compare(gold, answer, depth)
            if same is not None:
                return same
    if lost_parts(gold) != lost_parts(answer):
        return False
    return _parsed(gold, answer)


_PERCENT = re.compile(r"\s*\\%")
# The parser drops it as a transpose: (1+r)^T would be 1+r. That of a matrix is computed.
_EXPONENT_T = re.compile(r"(?:\(([A-Z]{2,})\))?(?<!matrix\})\s*\^\s*(?:T|\{\s*T\s*\})")
_PRIMED = re.compile(r"([A-Za-z])('+)(?!\s*\()")


def _parsed(gold: str, answer: str) -> bool | None:
    if "'" in gold + answer:  # the parser would read y' and y'' as y
        gold, answer = (
            _PRIMED.sub(lambda found: f"{found[1]}_{{{'p' * len(found[2])}}}", side)
            for side in (gold, answer)
        )
    gold, answer = (_EXPONENT_T.sub(_raise_to_t, side) for side in (gold, answer))
    gold, answer = (_PERCENT.sub(r"\\cdot\\frac{1}{100}", side) for side in (gold, answer))
    heavy = is_heavy(answer) or is_heavy(gold)
    return same_expression(gold, answer, heavy)


def _raise_to_t(match: re.Match[str]) -> str:
    """Write a power so that the parser reads it, and (AB)^T as B^TA^T."""
    return "".join(f"{factor}^{{(T)}}" for factor in (match[1] or " ")[::-1])


# 5\frac{m}{s}, where the right answer has a unit: otherwise it is an expression.
_FRACTION_OF_UNITS = re.compile(
    r"(?<=[0-9)}])\s*\\frac\s*\{\s*([A-Za-z]+)\s*\}\{\s*([A-Za-z]+)\s*((?:\^\s*\{?[0-9]\}?)?)\s*\}$"
)


def _compare_quantities(gold: str, answer: str) -> bool | None:
    """Compare values with units, numerals and percent signs; None if there are none."""
    right, given = read_quantity(gold), read_quantity(answer)
    plain = (gold, 1, (), False), (answer, 1, (), False)
    if right.unit and not given.unit:
        given = read_quantity(_FRACTION_OF_UNITS.sub(r"\\text{ \1/\2\3}", answer))
    if (tuple(right), tuple(given)) == plain:
        return None
    if _is_ambiguous(right.unit) and not given.unit and gold[-2:-1] == " ":
        return None  # 2 s may be a product
    radians = read_angles(right, given)
    if radians:
        return _parsed(*radians)
    if not compatible(right.unit, given.unit):
        return False
    a, b = value_of(tidy(right.value)), value_of(tidy(given.value))
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        a, b = a * right.scale, b * given.scale
        if right.percent == given.percent:
            ratios = (Fraction(1),)
        else:  # 50% is 0.5, and is written as 50, too
            ratios = (Fraction(1), Fraction(100) if right.percent else Fraction(1, 100))
        if any(a == b * ratio for ratio in ratios):
            return True
        close = any(abs(a - b * ratio) <= abs(a) * ROUNDING for ratio in ratios)
        if not close or a.denominator == 1:
            return False
    if right.scale != 1 or given.scale != 1:
        return False
    if right.percent != given.percent:  # 50% of an expression, as above
        percent, other = (right, given) if right.percent else (given, right)
        ways = (percent.value, rf"\frac{{{percent.value}}}{{100}}")
        pairs = [(tidy(way), tidy(other.value)) for way in ways]
        return any(_equal(*(pair if right.percent else pair[::-1]), depth=1) for pair in pairs)
    if (right.value, given.value) == (gold, answer):
        return None
    return _equal(tidy(right.value), tidy(given.value), depth=1)


def _is_ambiguous(unit: Sequence[tuple[str, int]]) -> bool:
    return len(unit) == 1 and len(unit[0][0]) == 1 and unit[0][0] not in "mg"


def _compare_solutions(gold: str, answer: str, depth: int) -> bool | None:
    """Compare inequalities and intervals; None unless one side is an inequality."""
    right, given = read_solution(gold), read_solution(answer)
    if right is None or given is None or {right.variable, given.variable} == {None}:
        return _compare_one_relation(gold, answer, depth)
    if None not in (right.variable, given.variable) and right.variable != given.variable:
        return False
    return _match_intervals(right, given, depth)


def _match_intervals(right: Solution, given: Solution, depth: int) -> bool:
    rest = list(given.intervals)
    if len(rest) != len(right.intervals):
        return False
    for interval in right.intervals:
        for other in rest:
            ends = zip(interval[1:3], other[1:3], strict=True)
            closed = (interval.open, interval.close) == (other.open, other.close)
            if closed and all(_equal(a, b, depth + 1) for a, b in ends):
                rest.remove(other)
                break
        else:
            return False
    return True


def _compare_one_relation(gold: str, answer: str, depth: int) -> bool | None:
    """Compare `x > f` with `x > g` by f and g."""
    for sign in (r"\le", r"\ge", "<", ">"):
        a, b = split_top(gold, sign), split_top(answer, sign)
        if len(a) == len(b) == 2 and squeeze(a[0]) == squeeze(b[0]):
            return _equal(a[1], b[1], depth + 1)
    return None


def _compare_collections(gold: str, answer: str, depth: int) -> bool | None:
    """Compare lists, sets, tuples and matrices part by part; None for other pairs."""
    matrices = read_matrix(gold), read_matrix(answer)
    if None not in matrices:
        same_rows = row_ends(matrices[0]) == row_ends(matrices[1])
        return same_rows and _in_order(*matrices, depth)
    a, b = (read_vector(side) or read_parts(side) for side in (gold, answer))
    if a is None or b is None:
        return None
    kinds = a[0], b[0]
    if "" in (a[1][0], b[1][0]):
        return None  # the empty set
    if max(len(a[1]), len(b[1])) > _MAX_PARTS:
        return None
    if kinds == ("", "") and len(a[1]) == len(b[1]) == 1:
        return None
    same = _compare_named(a, b, depth)
    if same is not None:
        return same
    if any(kind[:1] in ("(", "[", "\\") for kind in kinds if kind):
        if a[0] != b[0]:
            closed = "" not in kinds and is_plain(a, b)
            return False if closed and "{" in (kinds[0], kinds[1]) else None
        return _in_order(a[1], b[1], depth)
    if any(r"\ldots" in part for part in (*a[1], *b[1])):
        return _in_order(a[1], b[1], depth)
    if not is_plain(a, b):
        return None
    return _match(distinct(a), distinct(b), depth)


def _compare_named(
    gold: tuple[str, list[str]], answer: tuple[str, list[str]], depth: int
) -> bool | None:
    """Compare values of different variables with values without names; None for other pairs."""
    a, b = read_named(gold[1]), read_named(answer[1])
    unnamed = answer[1] if a else gold[1]
    if (a is None) == (b is None) or any(read_chain(part)[0] for part in unnamed):
        return None
    a, b = a or gold, b or answer
    compare = _match if {a[0], b[0]} <= {"", "{"} else _in_order
    return compare(a[1], b[1], depth)


def _in_order(gold: Sequence[str], answer: Sequence[str], depth: int) -> bool:
    pairs = zip(gold, answer, strict=False)
    return len(gold) == len(answer) and all(_part_equal(a, b, depth) for a, b in pairs)


def _match(gold: Sequence[str], answer: Sequence[str], depth: int) -> bool:
    """Whether two lists have the same parts, as often, in any order."""
    rest = list(answer)
    if len(rest) != len(gold):
        return False
    left = []
    for part in gold:  # equal texts and numbers first: they need no parser
        same = next((other for other in rest if squeeze(other) == squeeze(part)), None)
        rest.remove(same) if same is not None else left.append(part)
    for part in left:
        same = next((other for other in rest if _part_equal(part, other, depth)), None)
        if same is None:
            return False
        rest.remove(same)
    return True


def _part_equal(gold: str, answer: str, depth: int) -> bool:
    names, value, _ = read_chain(gold)
    given_names, given_value, _ = read_chain(answer)
    if names or given_names:
        if list(map(squeeze, names)) != list(map(squeeze, given_names)):
            return False
        gold, answer = value, given_value
    return bool(_equal(tidy(gold), tidy(answer), depth + 1))
