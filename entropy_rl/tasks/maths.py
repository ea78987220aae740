"""Maths problems with a final answer, from JSONL files, judged by math-verify, by DAPO's rule or by a user's.

The built-in verifiers run nothing of what the model wrote: math-verify parses LaTeX, and evaluates at most a
text of digits and operators. The worker processes have limits, but they are no sandbox.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from entropy_rl.factories import import_object, unknown
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.task import Problem, Verdict

PROMPTS = {
    # Qwen2.5-Math
    "boxed": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    # DAPO, arXiv 2503.14476
    "dapo": (
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    ),
}
SPLITS = ("train", "validation", "test")
MAX_BOXED = 300  # characters; the longest answer of MATH-500 has 159


class Maths:
    """Maths problems from JSONL files: one object per line with a problem and its final answer.

    Args:
      train: File of the split; null where there is none. `validation` and `test` likewise.
      prompt: `boxed`, `dapo`, or a text of your own that holds `{problem}`.
      chat: Wrap the prompt by the tokenizer's chat template, as a user's message.
      verifier: `math-verify` reads the last \\boxed{...} and compares as mathematics; `dapo` reads the last
        `Answer: ...` and compares as text; or `module:function`, a function of yours
        (prompt, completion, answer) -> Verdict.
      problem_field: Field of the problem's text.
      answer_field: Field of the answer: a text or a number.
      deadline_s: Wall-clock seconds of one check.
      workers: Processes that check; they start at the first completion that needs them.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        prompt: str = "boxed",
        chat: bool = False,
        verifier: str = "math-verify",
        problem_field: str = "problem",
        answer_field: str = "answer",
        deadline_s: float = 5.0,
        workers: int = 2,
    ):
        self._files = {
            split: Path(path)
            for split, path in zip(SPLITS, (train, validation, test), strict=True)
            if path is not None
        }
        for split, path in self._files.items():
            if not path.is_file():
                raise ValueError(f"task.args.{split}: {str(path)!r} is not a file; allowed: a JSONL file")
        self._template = PROMPTS.get(prompt, prompt)
        if "{problem}" not in self._template:
            raise ValueError(
                f"task.args.prompt: {prompt!r} is not allowed; allowed: {', '.join(PROMPTS)}, or a text "
                "that holds {problem}"
            )
        if prompt == "dapo" and verifier == "math-verify":
            raise ValueError(
                "task.args.verifier: 'math-verify' reads \\boxed{}; the prompt 'dapo' asks for none; "
                "allowed: 'dapo', 'module:function', or another prompt"
            )
        self._chat = chat
        self._fields = (problem_field, answer_field)
        self._verifier = verifier
        self._pool = None
        if verifier != "dapo":
            self._pool = _make_pool(verifier, deadline_s, workers)
        self._splits: dict[str, list[Problem]] = {}

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split, in the order of its file; the id is the place in it.

        Raises:
          ValueError: The split has no file, or a line of the file is wrong, as `FILE:LINE: what; allowed`.
        """
        if split not in self._files:
            given = ", ".join(self._files) or "none"
            raise ValueError(f"task.args.{split}: no file is given for this split; given: {given}")
        if split not in self._splits:
            self._splits[split] = [
                Problem(i, self._template.replace("{problem}", problem), answer, self._chat)
                for i, (problem, answer) in enumerate(_read(self._files[split], *self._fields))
            ]
        return self._splits[split]

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """One verdict for each completion, in order."""
        pairs = list(zip(problems, completions, strict=True))
        if self._verifier == "dapo":
            return [judge_dapo(completion, problem.answer) for problem, completion in pairs]
        if self._verifier != "math-verify":
            return self._pool.map([(p.prompt, completion, p.answer) for p, completion in pairs])
        boxed = [last_boxed(completion) for completion in completions]
        verdicts = [
            Verdict.UNPARSABLE if answer is None else compare_simple(problem.answer, answer)
            for problem, answer in zip(problems, boxed, strict=True)
        ]
        hard = [i for i, verdict in enumerate(verdicts) if verdict is None]
        judged = self._pool.map([(problems[i].answer, boxed[i]) for i in hard])
        for i, verdict in zip(hard, judged, strict=True):
            verdicts[i] = verdict
        return verdicts

    def close(self) -> None:
        """Ends the verifier processes."""
        if self._pool is not None:
            self._pool.close()


def _make_pool(verifier: str, deadline_s: float, workers: int) -> VerifierPool:
    path = "task.args.verifier"
    # An item that loads the LaTeX parser and the simplifier.
    check, warm_up = f"{__name__}:check_equal", (r"2\sqrt{2}", r"\sqrt{8}")
    if verifier != "math-verify":
        if ":" not in verifier:
            raise ValueError(unknown(path, verifier, ["math-verify", "dapo", "module:function"]))
        if verifier.startswith("__main__:"):
            raise ValueError(
                f"{path}: {verifier!r} is not allowed; allowed: a function of a module in its own file"
            )
        if not callable(import_object(path, verifier)):
            raise ValueError(
                f"{path}: {verifier!r} is no function; allowed: (prompt, completion, answer) -> Verdict"
            )
        check, warm_up = verifier, None
    try:
        return VerifierPool(check, workers=workers, deadline_s=deadline_s, warm_up=warm_up)
    except ValueError as error:
        raise ValueError(f"task.args.{error}") from error


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}.

    math-verify joins several boxed answers to a set, which makes `\boxed{41} wait, \boxed{42}` wrong.

    Args:
      text: A completion of any length; only its last box is looked at.

    Returns:
      The content; None where there is no box, or the last one is empty, not closed or longer than
      `MAX_BOXED` characters.
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for token in re.finditer(r"\\.|[{}]", text[start : start + MAX_BOXED + 1], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)  # an escaped brace counts nothing
        if depth == 0:
            content = text[start : start + token.start()]
            return content if content.strip() else None
    return None


def compare_simple(gold: str, answer: str) -> Verdict | None:
    """Decides equal texts, and plain numbers, exactly and without a process.

    Args:
      gold: The right answer.
      answer: The given one, out of its box.

    Returns:
      The verdict, or None where it takes more than this. That includes numbers closer than 1e-5: math-verify
      rounds to 6 decimals where one side is a decimal, so that 0.333333 is 1/3.
    """
    gold, answer = _normalise(gold), _normalise(answer)
    if gold == answer:
        return Verdict.CORRECT
    a, b = _number(gold), _number(answer)
    if a is None or b is None:
        return None
    if a == b:
        return Verdict.CORRECT
    return Verdict.WRONG if abs(a - b) > Fraction(1, 100_000) or a.denominator == b.denominator == 1 else None


_TYPOGRAPHY = (
    (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\$", ""), ("$", ""), (r"\!", ""), (r"\,", ""),
    (r"\;", ""), ("{,}", ","), ("\N{MINUS SIGN}", "-"),
)  # fmt: skip


def _normalise(text: str) -> str:
    for before, after in _TYPOGRAPHY:
        text = text.replace(before, after)
    text = " ".join(text.split()).removesuffix(".").removeprefix("+")
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", text)  # "1 2" is not 12


_DECIMAL = re.compile(r"-?(?:(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?|\.[0-9]+)")
_FRACTION = re.compile(r"(-?)(?:\\frac(?:\{(-?[0-9]+)\}\{(-?[0-9]+)\}|([0-9])([0-9]))|([0-9]+)/([0-9]+))")
_MAX_NUMBER = 100  # characters; longer ones are no plain numbers


def _number(text: str) -> Fraction | None:
    if len(text) > _MAX_NUMBER:
        return None
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", ""))
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    sign, *parts = match.groups()
    numerator, denominator = (int(part) for part in parts if part is not None)
    if denominator == 0:
        return None
    return Fraction(-numerator if sign else numerator, denominator)


def check_equal(gold: str, answer: str) -> Verdict:
    """Compares two answers by math-verify. Runs in a worker of the pool, which alone limits its time.

    Args:
      gold: The right answer. Where math-verify cannot read it, only the same text is correct.
      answer: The given one, out of its box.

    Returns:
      CORRECT, WRONG, or UNPARSABLE where math-verify reads nothing.
    """
    import logging

    from math_verify import parse, verify

    # It warns that it has no limit of time, once per module, and prints what it cannot parse.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    given = parse(rf"\boxed{{{answer}}}", parsing_timeout=None)
    if not given:
        return Verdict.UNPARSABLE
    right = parse(rf"\boxed{{{gold}}}", parsing_timeout=None)
    # The comparison is not symmetric: the right answer comes first.
    return Verdict.CORRECT if verify(right, given, timeout_seconds=None) else Verdict.WRONG


def judge_dapo(completion: str, answer: str) -> Verdict:
    r"""DAPO's rule: the text after the last `Answer:`, or a literally equal \boxed{}, near the end.

    Args:
      completion: Only its last 300 characters count (100 for the box).
      answer: The right answer.

    Returns:
      CORRECT, WRONG, or UNPARSABLE where there is neither an answer line nor a box.
    """
    tail = completion[-300:]
    lines = re.findall(r"answer\s*:\s*([^\n]+)", tail, re.IGNORECASE)
    boxed = last_boxed(tail[-100:])
    if boxed is not None and boxed == answer:
        return Verdict.CORRECT
    if not lines:
        return Verdict.UNPARSABLE if boxed is None else Verdict.WRONG
    right = normalise_minerva(answer)
    return Verdict.CORRECT if right and normalise_minerva(lines[-1]) == right else Verdict.WRONG


# Minerva's normalisation (arXiv 2206.14858, appendix D.1) with DAPO's tables. The order matters.
_REPLACED = (
    ("an ", ""), ("a ", ""), (".$", "$"), (r"\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"),
    (r",\text{and}", ","), (r"\text{and}", ","), (r"\text{m}", r"\text{}"),
)  # fmt: skip
_REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", r"\ldots", "sue",
    "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals",
    "edges", "students", "childrentickets", "multiples", r"\text{s}", r"\text{.}", "\\text{\ns}",
    r"\text{}^2", r"\text{}^3", "\\text{\n}", r"\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;",
    r",\!", "{,}", '"', r"\dots",
)  # fmt: skip
_UNWRAPPED = (
    (re.compile(r"\\text\{([^}]*)\}"), r"\1"),
    (re.compile(r"\\textbf\{([^}]*)\}"), r"\1"),
    (re.compile(r"\\overline\{([^}]*)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
    (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),
    (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),
)


def normalise_minerva(answer: str) -> str:
    """An answer in the form in which DAPO compares answers as texts."""
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


def _read(path: Path, problem_field: str, answer_field: str) -> list[tuple[str, str]]:
    """Problems and answers of a JSONL file."""
    rows = []
    with path.open("rb") as file:  # as bytes: a faulty character is reported with its line
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(_row(line, problem_field, answer_field))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    if not rows:
        raise ValueError(f"{path}:1: the file is empty; allowed: one JSON object per line, at least one")
    return rows


def _row(line: bytes, problem_field: str, answer_field: str) -> tuple[str, str]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8; allowed: UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); allowed: one JSON object per line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__} found; allowed: one JSON object per line")
    for field, option in ((problem_field, "problem_field"), (answer_field, "answer_field")):
        if field not in row:
            fields = ", ".join(map(repr, row)) or "none"
            raise ValueError(f"no field {field!r}; allowed as task.args.{option}: the fields there: {fields}")
    problem, answer = row[problem_field], row[answer_field]
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"{problem_field!r} is {problem!r:.60}; allowed: a non-empty text")
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        # Written out, without an exponent: 142.0 is "142".
        answer = str(int(answer)) if answer == int(answer) else f"{Decimal(repr(answer)):f}"
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{answer_field!r} is {answer!r:.60}; allowed: a number, or a non-empty text")
    return problem, answer.strip()
