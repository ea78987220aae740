"""Answers that are not parsed: they would be rewarded without knowledge, or take too much work.

The budgets are sizes of what would be parsed, so that a verdict does not depend on time or load.
"""

from __future__ import annotations

import math
import re
import unicodedata

from entropy_rl.tasks.math.equality.latex import read_chain
from entropy_rl.tasks.math.equality.structure import read_vector
from entropy_rl.tasks.task import Verdict


def refuse(gold: str, answer: str) -> Verdict | None:
    """Return the verdict on an answer that is not parsed.

    Args:
      gold: The right answer, tidied.
      answer: The given answer, tidied; its text differs from the right one.

    Returns:
      UNPARSABLE for text that is no answer or over the budget, WRONG for an answer that repeats the
      task or hides mathematics from math-verify, None for all others.
    """
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in answer) or is_over_budget(answer):
        return Verdict.UNPARSABLE
    if _TWO_POINTS.search(answer):
        return Verdict.UNPARSABLE
    if is_over_budget(gold) or _TWO_POINTS.search(gold):
        return Verdict.WRONG  # only the same text would be right
    value = read_chain(answer)[1]
    new = (
        set(_OPEN.findall(value)).union(_MISREAD.findall(answer)).difference(_COMMAND.findall(gold))
    )
    if new or bool(_DOTS.search(gold)) != bool(_DOTS.search(value)):
        return Verdict.WRONG
    signs = (_DERIVATIVE, _ENVIRONMENT)
    if gold.startswith("(") and read_vector(value):
        signs = (_DERIVATIVE,)  # a tuple as a vector: compared by its entries
    if any(len(sign.findall(value)) > len(sign.findall(gold)) for sign in signs):
        return Verdict.WRONG
    a, b = _BASE.search(gold), _BASE.search(value)
    return Verdict.WRONG if a and b and a[1] != b[1] else None


_TWO_POINTS = re.compile(r"\.[0-9]+\s*\.[0-9]")  # math-verify takes 1.2.3 for a product
# The task repeated instead of solved: sympy would solve it.
_OPEN = re.compile(
    r"\\(?:i{0,3}nt|oint|sum|prod|lim|max|min|sup|gcd|lcm|b?mod|det|operatorname)(?![A-Za-z])"
)
# math-verify reads only the frame of \fbox, takes \not= for =, and ignores a final backslash.
_MISREAD = re.compile(r"\\(?:fbox|not)(?![A-Za-z])|\\$")
_DERIVATIVE = re.compile(
    r"\\frac\s*\{\s*(?:\\partial|d(?![A-Za-z]))|\\frac\s*\{\s*d[^{}]*\}\s*\{\s*d\s*[A-Za-z]\s*\}"
)
_ENVIRONMENT = re.compile(
    r"\\begin\s*\{[vV]matrix|\\end\s*\{"
)  # a determinant; a product of matrices
_COMMAND = re.compile(r"\\[A-Za-z]+|\\$")
_DOTS = re.compile(r"\\[lc]?dots(?![A-Za-z])|\.\.\.")  # math-verify deletes them
_BASE = re.compile(r"[0-9]\s*_\s*\{?([0-9]+)\}?$")  # math-verify ignores it

_MAX_DEPTH = 10  # of brackets; the time to parse them grows exponentially
_MAX_EXPONENTS = 2  # of exponents in exponents, as in 2^{2^{n}}
_MAX_EXPONENT = 9999
_MAX_BARS = 8  # of absolute values; the parser tries all ways to pair them
_EXPONENT_CHAIN = re.compile(r"(?:\^\s*(?:\{?[A-Za-z0-9]+\}?|\\[A-Za-z]+)\s*\}*\s*){4,}")
_MAX_TERMS = 2_000  # of an expanded power
_FACTORIAL = re.compile(
    r"[0-9]{5,}[)}\]\s]*!"
    r"|\^\s*\{?\s*[0-9]+\s*[)}\]][)}\]\s]*!"  # of a power
    r"|![)}\]\s]*!"  # of a factorial; math-verify takes n!! for it, too
)
_BINOMIAL = re.compile(r"binom\s*\{?\s*[0-9]{5,}\s*\}?\s*\{?\s*[0-9]{4,}")
_GROUP_POWER = re.compile(r"[)}]\s*\^\s*\{?\s*([0-9]{2,4})")
_EXPONENT = re.compile(r"\^\s*\{?\s*([0-9]+)")
_FLAT = str.maketrans({"(": "", "{": "", ")": " ", "}": " "})
_POWERS = re.compile(r"[0-9]*(?:\s*\^\s*-?[0-9]+!?)+")


def is_over_budget(text: str) -> bool:
    """Whether a text is nested deeper, has more digits or more bars than any answer.

    Args:
      text: A tidied answer.
    """
    nested = []  # the brackets around; True for those of an exponent
    for bracket in re.findall(r"\^\s*[({]|[(\[{)\]}]", text):
        if bracket[-1] in "([{":
            nested.append(bracket[0] == "^")
            if len(nested) > _MAX_DEPTH or sum(nested) > _MAX_EXPONENTS:
                return True
        elif nested:
            nested.pop()
    if text.count("|") > _MAX_BARS or _EXPONENT_CHAIN.search(text):
        return True
    if _FACTORIAL.search(text) or _BINOMIAL.search(text):
        return True
    flat = text.replace("**", "^").translate(_FLAT)
    if any(_is_tower(run[0]) for run in _POWERS.finditer(flat)):
        return True
    return any(_is_tall(text, match) for match in _GROUP_POWER.finditer(text))


def _is_tall(text: str, power: re.Match[str]) -> bool:
    """Whether exponents within a group, times its own, are greater than `_MAX_EXPONENT`."""
    start, depth = power.start(), 1
    while start and depth:
        start -= 1
        depth += {"(": -1, "{": -1, ")": 1, "}": 1}.get(text[start], 0)
    within = _EXPONENT.findall(text, start, power.start())
    return any(int(power[1]) * int(exponent[:5]) > _MAX_EXPONENT for exponent in within)


def _is_tower(run: str) -> bool:
    """Whether an exponent in a ^ b ^ c ... is greater than `_MAX_EXPONENT`."""
    exponent = 1
    for part in reversed(run.split("^")[1:]):
        digits = part.strip(" -!")
        if (
            len(digits) > 4
            or ("!" in part and int(digits) > 7)
            or (int(digits) > 1 and exponent > 13)
        ):
            return True
        exponent = (math.factorial(int(digits)) if "!" in part else int(digits)) ** exponent
        if exponent > _MAX_EXPONENT:
            return True
    return False


_SUM_POWER = re.compile(r"[)}]\s*\^\s*\{?\s*([0-9]{2,4})\s*\}?")
_POWER_OF_LETTER = re.compile(r"[A-Za-z]\s*\^\s*\{?\s*([0-9]{3,4})\s*\}?")


def is_heavy(text: str) -> bool:
    """Whether a symbolic proof could expand a power of a sum to more terms than any answer has.

    Args:
      text: A tidied answer.
    """
    for match in _SUM_POWER.finditer(text):
        opened = max(text.rfind("(", 0, match.start()), text.rfind("{", 0, match.start()))
        terms = 1 + len(re.findall(r"(?<=[^(\[{,+-])[+-]", text[opened + 1 : match.start()]))
        if terms > 1 and math.comb(int(match[1]) + terms - 1, terms - 1) > _MAX_TERMS:
            return True
    return bool(_POWER_OF_LETTER.search(text)) and "frac" in text
