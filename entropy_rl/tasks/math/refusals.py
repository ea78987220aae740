"""Answers that math-verify is not asked about: it would reward them without knowledge, or never
end.
"""

from __future__ import annotations

import math
import re
import unicodedata

from entropy_rl.tasks.math.latex import read_chain
from entropy_rl.tasks.task import Verdict


def refuse(gold: str, answer: str) -> Verdict | None:
    """The verdict on an answer that math-verify is not asked about.

    Args:
      gold: The right answer, tidied (`latex.tidy`).
      answer: The given one, likewise; its text is not that of the right one.

    Returns:
      UNPARSABLE for what is no answer or would never end, WRONG for what repeats the task or hides
      mathematics where math-verify does not look, None for all others.
    """
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in answer) or _is_endless(answer):
        return Verdict.UNPARSABLE
    value = read_chain(answer)[1]
    new = (
        set(_OPEN.findall(value)).union(_MISREAD.findall(answer)).difference(_COMMAND.findall(gold))
    )
    if new or bool(_DOTS.search(gold)) != bool(_DOTS.search(value)):
        return Verdict.WRONG
    if any(
        len(sign.findall(value)) > len(sign.findall(gold)) for sign in (_DERIVATIVE, _ENVIRONMENT)
    ):
        return Verdict.WRONG
    if _loses_maths(value) or _loses_maths(gold):
        return Verdict.WRONG
    for sign in (_BASE, _HALF_DAY):
        a, b = sign.search(gold), sign.search(value)
        if a and b and a[1].casefold() != b[1].casefold():
            return Verdict.WRONG
    return None


# A task that is repeated instead of solved: sympy would solve it.
_OPEN = re.compile(
    r"\\(?:i{0,3}nt|oint|sum|prod|lim|max|min|sup|gcd|lcm|b?mod|det|operatorname)(?![A-Za-z])"
)
# math-verify looks at nothing but the frame, takes \not= for =, and a backslash for no end.
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
_HALF_DAY = re.compile(r"\b([ap])\.?\s?m\b", re.IGNORECASE)  # and this

_MAX_DEPTH = 10  # of brackets; the time to parse them grows exponentially
_MAX_EXPONENTS = 2  # of exponents in exponents, as in 2^{2^{n}}
_MAX_EXPONENT = 9999
_FACTORIAL = re.compile(
    r"[0-9]{5,}[)}\]\s]*!"
    r"|\^\s*\{?\s*[0-9]+\s*[)}\]][)}\]\s]*!"  # of a power
    r"|![)}\]\s]*!"  # of a factorial; math-verify takes n!! for it, too
)
_BINOMIAL = re.compile(r"binom\s*\{?\s*[0-9]{5,}\s*\}?\s*\{?\s*[0-9]{4,}")
_FLAT = str.maketrans({"(": "", "{": "", ")": " ", "}": " "})
_POWERS = re.compile(r"[0-9]*(?:\s*\^\s*-?[0-9]+!?)+")


def _is_endless(text: str) -> bool:
    """Whether it is nested deeper than any answer, or holds a number of more digits than any
    answer has.
    """
    nested = []  # the brackets around; True for those of an exponent
    for bracket in re.findall(r"\^\s*[({]|[(\[{)\]}]", text):
        if bracket[-1] in "([{":
            nested.append(bracket[0] == "^")
            if len(nested) > _MAX_DEPTH or sum(nested) > _MAX_EXPONENTS:
                return True
        elif nested:
            nested.pop()
    if _FACTORIAL.search(text) or _BINOMIAL.search(text):
        return True
    flat = text.replace("**", "^").translate(_FLAT)
    return any(_is_tower(run[0]) for run in _POWERS.finditer(flat))


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


_GROUP = r"\\(?:text[a-z]*|mbox|math(?:rm|it|bf))\s*\{"
_DROPPED = re.compile(
    _GROUP + r".*\}(?:\^[0-9]|\{\^[0-9]\})?$", re.DOTALL
)  # by math-verify, as a unit
UNIT = re.compile(rf"(?:{_GROUP}[^{{}}0-9,;]*\}}\s*(?:\^\s*[0-9]|\^\s*\{{-?[0-9]\}})?\s*)+")
_HEDGE = re.compile(r"\b(?:or|not|if|unless|except|maybe|perhaps|possibly|at (?:least|most))\b")


def _loses_maths(text: str) -> bool:
    r"""Whether math-verify would drop more than a unit: of 41\text{ or }\frac{1}{2}\text{ cm} it
    reads 41."""
    dropped = _DROPPED.search(text)
    if dropped is None or not text[: dropped.start()].strip():
        return False
    return not UNIT.fullmatch(dropped[0]) or bool(_HEDGE.search(dropped[0]))
