"""Fields of a row: which ones hold problem and answer, dotted names, and the checks of values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from entropy_rl.config.checks import is_number
from entropy_rl.tasks.data_files.messages import check_unicode, is_messages, refuse_text_of_messages

# Looked for in this order where no field is named. `reward_model.ground_truth` is verl's.
PROMPTS = ("problem", "question", "prompt")
PROBLEM_FIELDS = (*PROMPTS, "messages", "conversations")
ANSWER_FIELDS = (
    "answer",
    "reward_model.ground_truth",
    "ground_truth",
    "final_answer",
    "solution",
)
_LAST = (".-1.content", ".-1.value")  # of a conversation: the answer of the assistant


class Fields(NamedTuple):
    """The fields of problem and answer in a file.

    Attributes:
      problem: Dotted name.
      answer: Dotted name.
      named: Whether each was named by the user; otherwise it was found by its name.
    """

    problem: str
    answer: str
    named: tuple[bool, bool] = (True, True)

    @property
    def answer_is_reply(self) -> bool:
        """Whether the answer is the last message of the problem's conversation."""
        return self.answer in [self.problem + end for end in _LAST]


def find_fields(row: Mapping[str, Any], problem: str | None, answer: str | None) -> Fields:
    """Find the fields of problem and answer in the first row of a file.

    Args:
      row: The row.
      problem: The field that the user named; None to look for `PROBLEM_FIELDS`.
      answer: The field that the user named; None to look for `ANSWER_FIELDS`, and in a conversation
        for the last message of the assistant.

    Raises:
      ValueError: If a field is named and missing, or none is found.
    """
    named = (problem is not None, answer is not None)
    if problem is None:
        problem = next((name for name in PROBLEM_FIELDS if _has(row, name)), None)
        if problem is None:
            raise ValueError(_missing("problem_field", row, PROBLEM_FIELDS))
    else:
        require_field(row, problem, "problem_field")
    if answer is None:
        replies = [problem + end for end in _LAST if _is_reply(row, problem, end)]
        answer = next((name for name in ANSWER_FIELDS if _has(row, name)), None)
        answer = answer or next(iter(replies), None)
        if answer is None:
            raise ValueError(_missing("answer_field", row, ANSWER_FIELDS))
    else:
        require_field(row, answer, "answer_field")
    return Fields(problem, answer, named)


def _missing(option: str, row: Mapping[str, Any], looked_for: Iterable[str]) -> str:
    return (
        f"{option}: must be one of {_names(row)}, got null, for which none of "
        f"{', '.join(looked_for)} is there"
    )


def _has(row: Mapping[str, Any], field: str) -> bool:
    """Whether a row has a field, which may be null: what is found depends on names alone."""
    try:
        require_field(row, field, "")
    except ValueError:
        return False
    return True


def _is_reply(row: Mapping[str, Any], problem: str, end: str) -> bool:
    messages = get_field(row, problem)
    if not isinstance(messages, list) or not is_messages(messages):
        return False
    role = messages[-1].get("role" if end == _LAST[0] else "from")
    return role in ("assistant", "gpt")


# --------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------


def require_field(row: Mapping[str, Any], field: str, option: str) -> None:
    """Check that a row has a field, which may be null.

    Raises:
      ValueError: If it is missing; the message lists the fields at the place where it is.
    """
    if field in row:
        return
    value, before = row, ""
    for part in field.split("."):
        if not isinstance(value, Mapping):
            return  # null, a text or a list, which `get_field` reports
        if part not in value:
            raise ValueError(f"{option}: must be one of {_names(value, before)}, got {field!r}")
        value, before = value[part], f"{before}{part}."


def get_field(row: Mapping[str, Any], field: str) -> Any:
    """Return a field, such as `answer`, `extra_info.question` or `messages.-1.content`.

    Raises:
      ValueError: If it is missing.
    """
    if field in row:
        return row[field]
    value, before = row, ""
    for part in field.split("."):
        if isinstance(value, list) and part.lstrip("-").isdigit():
            if not -len(value) <= int(part) < len(value):
                raise ValueError(
                    f"{before!r}: must have an item {part}, got a list of {len(value)}"
                )
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Mapping):
            names = _names(value, f"{before}." if before else "")
            raise ValueError(f"{field!r}: must be one of the fields {names}, got none of that name")
        else:
            raise ValueError(f"{before!r}: must be an object with {part!r}, got {value!r:.60}")
        before = f"{before}.{part}" if before else part
    return value


def _names(row: Any, before: str = "") -> str:
    names = row if isinstance(row, Mapping) else ()
    return ", ".join(repr(f"{before}{name}") for name in names) or "none"


def take_text(row: Mapping[str, Any], field: str) -> str:
    """Return a field that must be a non-empty text.

    Raises:
      ValueError: If it is anything else.
    """
    text = get_field(row, field)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field!r}: must be a non-empty text, got {text!r:.60}")
    refuse_text_of_messages(text, field)
    check_unicode(field, text)
    return text


def take_answer(row: Mapping[str, Any], field: str) -> str:
    """Return an answer as a stripped text; a number is written without an exponent.

    A list of one item is that item.

    Raises:
      ValueError: If it is neither a text nor a finite number.
    """
    answer = get_field(row, field)
    if isinstance(answer, list) and len(answer) == 1:
        (answer,) = answer
    if isinstance(answer, Decimal) and answer.is_finite():
        answer = str(int(answer)) if answer == int(answer) else f"{answer.normalize():f}"
    if is_number(answer) and math.isfinite(answer):
        # Without an exponent: 142.0 is "142".
        answer = str(int(answer)) if answer == int(answer) else f"{Decimal(repr(answer)):f}"
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{field!r}: must be a number or a non-empty text, got {answer!r:.60}")
    check_unicode(field, answer)
    return answer.strip()
