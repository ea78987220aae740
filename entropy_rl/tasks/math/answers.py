r"""Final answers: extraction from \boxed{...}, and equality.

Right answers and completions pass through the same steps: typography (`tidy`), plain numbers,
units, structure (lists, tuples, sets, intervals), and only then expressions, by math-verify. What
its parser drops (primes, subscripts, words, multiplicity, order) is compared in `compare`.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from entropy_rl.tasks.math.equality.compare import same_answer
from entropy_rl.tasks.math.equality.expressions import ROUNDING, OverBudget
from entropy_rl.tasks.math.equality.latex import closing_brace
from entropy_rl.tasks.math.equality.plain_numbers import value_of
from entropy_rl.tasks.math.equality.refusals import refuse
from entropy_rl.tasks.math.equality.typography import tidy
from entropy_rl.tasks.task import Verdict

MAX_ANSWER = 300  # characters that are parsed; the longest answer of MATH-500 has 159

_BOX = re.compile(r"\\boxed\s*\{")
_GSM8K = "####"


def last_boxed(text: str) -> str | None:
    r"""Extract the content of the last \boxed{...}.

    math-verify would join several boxed answers to a set, so that `\boxed{41} wait, \boxed{42}`
    would be wrong.

    Args:
      text: A completion of any length; only its last box is read.

    Returns:
      The content; None if there is no box, or the last one is empty or not closed.
    """
    *_, start = [-1, *(match.end() for match in _BOX.finditer(text))]
    if start < 0:
        return None
    end = closing_brace(text[start:])
    if end is None:
        return None
    content = text[start : start + end]
    return content if content.strip() else None


@functools.lru_cache(maxsize=4096)
def final_answer(gold: str) -> str:
    r"""Extract the final answer from a right answer that is a whole solution.

    Args:
      gold: A right answer of a data set.

    Returns:
      The text after the last `####` (GSM8K), or the content of the last \boxed{...}; otherwise the
      text itself.
    """
    if _GSM8K in gold:
        answer = gold.rpartition(_GSM8K)[2].strip()
        if answer and "\n" not in answer:
            return answer
    boxed = last_boxed(gold)
    return gold if boxed is None else boxed.strip()


def canonical(answer: str) -> str:
    """Map equal answers to equal texts, for majority votes and counts of distinct answers.

    Two answers have the same one exactly if `compare_simple` returns CORRECT. A number becomes an
    integer or a fraction in lowest terms; any other text loses its typography.

    Args:
      answer: An answer without its box.

    Returns:
      The text, which is no longer LaTeX.
    """
    if len(answer) > MAX_ANSWER:
        return "".join(answer.split())
    return str(value_of(tidy(answer)))


def compare_simple(gold: str, answer: str) -> Verdict | None:
    """Decide equal texts, plain numbers and refused answers, without a process.

    Args:
      gold: The right answer.
      answer: The given answer, without its box.

    Returns:
      The verdict, or None if it takes more. That includes a number so close to the right one that
      it may be its rounding: math-verify rounds to 6 decimals, so that 0.333333 is 1/3.
    """
    if canonical(gold) == canonical(answer):
        return Verdict.CORRECT
    if len(answer) > MAX_ANSWER:
        return Verdict.UNPARSABLE
    gold, answer = tidy(gold[: 10 * MAX_ANSWER]), tidy(answer)
    a, b = value_of(gold), value_of(answer)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        # An integer is not a rounding; a fraction may be given as one.
        far = a.denominator == 1 or abs(a - b) > abs(a) * ROUNDING
        return Verdict.WRONG if far else None
    return refuse(gold, answer)


def check_equal(gold: str, answer: str) -> Verdict:
    """Compare two answers. Runs in a worker of the pool, which limits its time and memory.

    Args:
      gold: The right answer.
      answer: The given answer, without its box, which `compare_simple` has not decided.

    Returns:
      CORRECT, WRONG, or UNPARSABLE if there is no answer to read or reading it would take too much
      work.
    """
    verdict = compare_simple(gold, answer)
    if verdict is not None:
        return verdict
    try:
        same = same_answer(gold, answer)
    except OverBudget:
        return Verdict.UNPARSABLE
    return Verdict.UNPARSABLE if same is None else Verdict.CORRECT if same else Verdict.WRONG
