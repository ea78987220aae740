"""DAPO's verifier: compare answers as texts after Minerva's normalization."""

from __future__ import annotations

import re

from entropy_rl.tasks.math.answers import last_boxed
from entropy_rl.tasks.task import Verdict

_ANSWER = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)


def judge_dapo(completion: str, answer: str) -> Verdict:
    r"""Judge the text after the last `Answer:`, or else the last \boxed{}, near the end.

    The box is compared literally, and only if there is no answer line: with both, a policy would
    have two attempts.

    Args:
      completion: Only its last 300 characters are read. DAPO's code reads a box in the last 100
        alone, which its users report as a fault: a closing sentence made an answer unreadable.
      answer: The right answer.

    Returns:
      CORRECT, WRONG, or UNPARSABLE if there is neither an answer line nor a box.
    """
    given, is_line = _find(completion)
    if given is None:
        return Verdict.UNPARSABLE
    right = normalize_minerva(answer) if is_line else answer
    return Verdict.CORRECT if right and given == right else Verdict.WRONG


def last_answer(completion: str) -> str | None:
    r"""The text that `judge_dapo` compares with the right answer, for votes and counts.

    Args:
      completion: A completion.

    Returns:
      The normalized text of the last answer line, or the content of the last \boxed{}; None if the
      completion has neither. The text is empty if normalization removes the whole line.
    """
    return _find(completion)[0]


def _find(completion: str) -> tuple[str | None, bool]:
    """The text to compare, and whether it comes from an answer line."""
    tail = completion[-300:]
    lines = _ANSWER.findall(tail)
    if lines:
        return normalize_minerva(lines[-1]), True
    return last_boxed(tail), False


# Minerva's normalization (arXiv 2206.14858, appendix D.1) with DAPO's tables. The order matters.
_REPLACED = (
    ("an ", ""), ("a ", ""), (".$", "$"), (r"\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"),
    (r",\text{and}", ","), (r"\text{and}", ","), (r"\text{m}", r"\text{}"),
)  # fmt: skip
_REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", r"\ldots",
    "sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds",
    "meters", "meals", "edges", "students", "childrentickets", "multiples", r"\text{s}",
    r"\text{.}", "\\text{\ns}", r"\text{}^2", r"\text{}^3", "\\text{\n}", r"\text{}",
    r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', r"\dots",
)  # fmt: skip
_UNWRAPPED = (
    (re.compile(r"\\text\{([^}]*)\}"), r"\1"),
    (re.compile(r"\\textbf\{([^}]*)\}"), r"\1"),
    (re.compile(r"\\overline\{([^}]*)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
    (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),
    (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),
)


def normalize_minerva(answer: str) -> str:
    """Normalize an answer as DAPO does before it compares texts."""
    answer = answer.rpartition("=")[2]
    for before, after in _REPLACED:
        answer = answer.replace(before, after)
    for text in _REMOVED:
        answer = answer.replace(text, "")
    formula = answer.split("$", 2)
    if len(formula) == 3:
        answer = f"${formula[1]}$"  # the first formula, without the words around it
    for pattern, inner in _UNWRAPPED:
        answer = pattern.sub(inner, answer)
    answer = answer.replace("$", "")
    digits = answer.replace(",", "")
    return digits if digits.isdigit() else answer.strip()
