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
_MAX_BOXES = 10  # that are joined
_DELIMITERS = re.compile(r"[\s$~]+|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])")
_NAME = r"(?P<name>[A-Za-z](?:_(?:\w|\{\w+\}))?'?) ?= ?"
_WORD = r",? ?(?:and|or)|\\text ?\{ ?,? ?(?:and|or) ?\}"
_BETWEEN = re.compile(rf" ?(?:{_WORD}|[,;]) ?(?:{_NAME})?")
_BEFORE = re.compile(rf"(?:^|.*[^\w'}}]){_NAME}", re.DOTALL)
_MAX_BETWEEN = 60  # characters
_GSM8K = "####"
_APPROXIMATELY = re.compile(r"(?:approximately|approx\.?|about|roughly|around)\s+(?=[-$\\.0-9])")
# One text in a list, as in JSON or Python, or the one value of a JSON object.
_ONE_VALUE = re.compile(
    r"""\[\s*(?P<quote>["'])(?P<text>[^"']+)(?P=quote)\s*\]"""
    r"""|\{\s*"\w+"\s*:\s*(?:"(?P<quoted>[^"]+)"|(?P<number>[-.0-9eE]+))\s*\}"""
)


def last_boxed(text: str) -> str | None:
    r"""Extract the content of the last \boxed{...}.

    Args:
      text: A completion of any length; only its last box is read.

    Returns:
      The content; None if there is no box, or the last one is empty or not closed.
    """
    *_, start = [-1, *(match.end() for match in _BOX.finditer(text))]
    found = _read_box(text, start) if start >= 0 else None
    return found and found[0]


def last_boxes(text: str) -> str | None:
    r"""Extract the last \boxed{...}, with those before it that only connectives separate.

    `x=\boxed{3}` and `y=\boxed{4}` are `x=3, y=4`; `\boxed{5} or \boxed{6}` are `5, 6`. Other text
    takes back what is before it: `\boxed{41} wait, \boxed{42}` is 42, of which math-verify would
    make the set of both.

    Args:
      text: A completion, or the solution of a data set.

    Returns:
      The content, or the contents separated by commas; None if there is no box, or the last one is
      empty or not closed.
    """
    boxes = list(_BOX.finditer(text))
    found = _read_box(text, boxes[-1].end()) if boxes else None
    if found is None:
        return None
    contents, names = [found[0]], []
    for before, box in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        found = _read_box(text, before.end(), box.start())
        between = found and _BETWEEN.fullmatch(_strip(text[found[1] : box.start()]))
        if not between or len(contents) == _MAX_BOXES:
            break
        contents.insert(0, found[0])
        names.insert(0, between["name"])
    if len(set(map(canonical, contents))) == 1:
        return contents[-1]
    first = boxes[-len(contents)].start()
    named = _BEFORE.fullmatch(_strip(text[max(0, first - _MAX_BETWEEN) : first]))
    names.insert(0, named and named["name"])
    if None not in names:
        contents = [f"{name}={content}" for name, content in zip(names, contents, strict=True)]
    return ", ".join(content.strip() for content in contents)


def _read_box(text: str, start: int, limit: int | None = None) -> tuple[str, int] | None:
    """The content of a box and the index behind it, at most `_MAX_BETWEEN` before a limit."""
    end = closing_brace(text[start:limit])
    if end is None or not text[start : start + end].strip():
        return None
    if limit is not None and limit - start - end > _MAX_BETWEEN:
        return None
    return text[start : start + end], start + end + 1


def _strip(text: str) -> str:
    """The text without delimiters of mathematics."""
    return re.sub(" +", " ", _DELIMITERS.sub(" ", text))


@functools.lru_cache(maxsize=4096)
def final_answer(gold: str) -> str:
    r"""Extract the final answer from a right answer that is a whole solution.

    Args:
      gold: A right answer of a data set.

    Returns:
      The text after the last `####` (GSM8K), or the content of the last boxes, as `last_boxes`;
      otherwise the text itself, without `approximately` and a list or an object around one value.
    """
    if _GSM8K in gold:
        answer = gold.strip("# \n\t").rpartition(_GSM8K)[2].strip()
        if answer and "\n" not in answer:
            return answer
    boxed = last_boxes(gold) or last_boxes(gold.replace(r"\fbox", r"\boxed"))
    if boxed is not None:
        return boxed.strip()
    one = _ONE_VALUE.fullmatch(gold.strip())
    if one:
        gold = (one["text"] or one["quoted"] or one["number"]).replace("\\\\", "\\").strip()
    return _APPROXIMATELY.sub("", gold, count=1) if _APPROXIMATELY.match(gold) else gold


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
