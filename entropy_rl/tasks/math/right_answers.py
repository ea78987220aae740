r"""Right answers that a verifier cannot use: found when a data set is loaded, shown or prepared.

A right answer is data like a completion. One that is prose, cannot be written into \boxed{} or is
longer than what is parsed is met by its own text at most, and its problem never gives a reward.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from entropy_rl.tasks.math.answers import MAX_ANSWER, canonical, final_answer, last_boxed
from entropy_rl.tasks.math.dapo import judge_dapo, normalize_minerva
from entropy_rl.tasks.math.equality.refusals import is_over_budget
from entropy_rl.tasks.math.equality.typography import tidy
from entropy_rl.tasks.math.equality.units import read_quantity
from entropy_rl.tasks.task import Verdict

_LONG = 50_000  # answers; fewer take less than five seconds
_MAX_WORDS = 5  # of an answer in words
_MAX_SIGNS = 12  # of an answer in Chinese, Japanese or Korean
_PLAIN = re.compile(r"-?[0-9]{1,50}(?:\.[0-9]{1,50})?")
_NAMES = re.compile(r"\\(?:begin|end)\s*\{[A-Za-z*]+\}|\\(?!text)[A-Za-z]+|\\text")
_WORD = re.compile(r"[^\W\d_]{2,}")
_SIGNS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_UNREAD = re.compile(
    r"\\begin\s*\{(?:tabular|figure|table|tikzpicture)|\\includegraphics|\[asy\]|<[a-z]+>|https?://"
)
_SEVERAL = re.compile(r"""\[\s*(["']).*\1\s*,\s*\1.*\1\s*\]|\{\s*"\w+"\s*:.*\}""", re.DOTALL)
_PLACEHOLDER = re.compile(
    r"nan|none|null|nil|n/?a|unknown|tbd|todo|-+|answer|proof\.?|(?:see|refer to) (?:the |our )?"
    r"(?:solution|proof|figure|picture|graph|diagram|image|table|above|below|explanation)s?\.?",
    re.IGNORECASE,
)
_CONNECTIVES = frozenset(
    ["and", "or", "if", "for", "all", "where", "with", "the", "is", "are", "of", "in", "to", "on"]
)


class AnswerReport(NamedTuple):
    """Right answers of a data set that a verifier cannot use.

    Attributes:
      total: Number of right answers.
      extracted: Number of them that were extracted from a solution.
      unusable: Number of them that no completion, or only one with the same text, can meet.
      index: Index of the first unusable one, or None.
      example: Its text.
      reason: Why it is unusable.
    """

    total: int
    extracted: int
    unusable: int
    index: int | None
    example: str
    reason: str

    @property
    def message(self) -> str:
        """What is wrong and what to do about it; empty if all right answers can be used."""
        if not self.unusable:
            return ""
        return (
            f"must have right answers that a verifier can read, got {self.unusable:,} of "
            f"{self.total:,} that no other text than their own can meet, the first at "
            f"{self.index}: {self.example!r:.70} ({self.reason}); name the field of the final "
            "answer by answer_field, or put the answer after '####' or into \\boxed{}"
        )


def check_answers(answers: Sequence[str], verifier: str = "math-verify") -> AnswerReport:
    """Check the right answers of a data set.

    Args:
      answers: The right answers, as in the data set.
      verifier: `math-verify` or `dapo`.
    """
    extracted = unusable = 0
    first: tuple[int | None, str, str] = (None, "", "")
    for index, answer in enumerate(_with_progress(answers)):
        final = final_answer(answer)
        extracted += final != answer
        reason = why_unusable(final, verifier)
        if reason:
            unusable += 1
            if first[0] is None:
                first = (index, final, reason)
    return AnswerReport(len(answers), extracted, unusable, *first)


def _with_progress(answers: Sequence[str]) -> Iterator[str]:
    """Iterate over right answers; show the progress if there are many."""
    if len(answers) < _LONG:
        yield from answers
        return
    from entropy_rl.runs.logging import Progress  # slow to import

    with Progress("checking right answers", len(answers), every=200_000) as progress:
        for done, answer in enumerate(answers, 1):
            yield answer
            if done % 1000 == 0 or done == len(answers):
                progress.show(done, "")


def why_unusable(answer: str, verifier: str = "math-verify") -> str:
    """Say why a verifier cannot use a right answer; empty if it can.

    Args:
      answer: A final answer.
      verifier: `math-verify` or `dapo`.
    """
    if _PLAIN.fullmatch(answer):
        return ""
    if _PLACEHOLDER.fullmatch(answer.strip()):
        return "a placeholder"
    if len(answer) <= MAX_ANSWER and _SEVERAL.fullmatch(answer.strip()):
        return "a list or an object of several texts"
    if verifier == "dapo":
        if judge_dapo(f"Answer: {answer}", answer) is Verdict.CORRECT:
            return ""
        return "nothing is left of it" if not normalize_minerva(answer) else "too long for a line"
    if len(answer) > MAX_ANSWER:
        return f"longer than {MAX_ANSWER} characters"
    if last_boxed(rf"\boxed{{{answer}}}") != answer:
        return "braces that are not balanced"
    if not canonical(answer).strip("{}[]()., #"):
        return "nothing but typography" if not re.search(r"\\\{|[?]", answer) else ""
    if is_over_budget(tidy(answer)):
        return "too large to be parsed"
    return _why_prose(answer)


def _why_prose(answer: str) -> str:
    text = tidy(answer)
    if _UNREAD.search(answer):
        return "a picture, a table or markup"
    quantity = read_quantity(text).value
    plain = _NAMES.sub(" ", quantity)
    words = [word for word in _WORD.findall(plain) if word.isascii() or not _SIGNS.search(word)]
    prose = [word for word in words if len(word) > 2 and word.casefold() not in _CONNECTIVES]
    if len(_SIGNS.findall(plain)) > _MAX_SIGNS or len(words) > _MAX_WORDS:
        return "prose"
    has_math = bool(re.search(r"[0-9=^<>]|\\(?:frac|sqrt|pi|le|ge)", quantity))
    if has_math and len(prose) > 1 and not all(word.isupper() for word in prose):
        return "prose with a formula"
    return "several lines" if "\n" in answer.strip() and r"\begin" not in answer else ""
