"""Read the problems and answers of data files, and count the rows that are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from entropy_rl.tasks.data_files.fields import (
    PROMPTS,
    Fields,
    find_fields,
    get_field,
    require_field,
    take_answer,
    take_text,
)
from entropy_rl.tasks.data_files.files import read_rows
from entropy_rl.tasks.data_files.messages import Message, is_messages, read_messages, split_prompt


class Example(NamedTuple):
    """A problem with its answer.

    Attributes:
      index: Place among the rows of the source, from 0.
      problem: The problem; of a conversation the last message of the user.
      answer: The right answer.
      before: The messages before it; empty for a text.
      chat: Whether the row holds messages.
    """

    index: int
    problem: str
    answer: str
    before: tuple[Message, ...] = ()
    chat: bool = False


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a source.

    Attributes:
      rows: The examples.
      total: Number of rows of the source.
      fields: Where problem and answer were found; None for a prepared set.
      first_left_out: Why the first invalid row is left out, as `FILE:LINE: ...`; empty if none is.
    """

    rows: list[Example]
    total: int
    fields: Fields | None = None
    first_left_out: str = ""

    @property
    def left_out(self) -> int:
        """Number of rows that are left out."""
        return self.total - len(self.rows)

    @property
    def message(self) -> str:
        """How many rows are left out, with the first; empty if none is."""
        if not self.left_out:
            return ""
        return (
            f"{self.left_out:,} of {self.total:,} rows are left out as invalid, the first "
            f"is {self.first_left_out}"
        )


def read_examples(
    paths: Sequence[Path],
    problem_field: str | None = None,
    answer_field: str | None = None,
    skip_invalid: bool = False,
) -> Examples:
    """Read data files.

    Args:
      paths: The files.
      problem_field: Dotted name of the field of the problem; None to look for it.
      answer_field: Dotted name of the field of the answer; None to look for it.
      skip_invalid: Leave out rows in which a field is missing, empty or of a wrong type. A file
        that cannot be read is an error all the same.

    Raises:
      ValueError: If a row is invalid, as `FILE:LINE: ...` or `FILE: row N: ...`, or all are.
    """
    rows: list[Example] = []
    fields, first, total = None, "", 0
    for where, row in read_rows(paths):
        try:
            if fields is None:
                fields = find_fields(row, problem_field, answer_field)
            rows.append(_read(total, row, fields))
        except ValueError as error:
            if not skip_invalid:
                raise ValueError(f"{where}: {error}") from error
            first = first or f"{where}: {error}"
        total += 1
    if not rows:
        raise ValueError(f"{first}; none of the {total:,} rows is valid")
    return Examples(rows, total, fields, first)


def _read(index: int, row: dict, fields: Fields) -> Example:
    require_field(row, fields.problem, "problem_field")
    if not fields.answer_is_reply:
        require_field(row, fields.answer, "answer_field")
    value = get_field(row, fields.problem)
    if not is_messages(value):
        return Example(index, take_text(row, fields.problem), take_answer(row, fields.answer))
    messages = read_messages(value, fields.problem)
    if fields.answer_is_reply and messages[-1][0] != "assistant":
        raise ValueError(
            f"{fields.problem!r}: must end with the assistant's message, which is the answer, got "
            f"one of the {messages[-1][0]}"
        )
    # A field with the name of a conversation may have the reply too, beside the answer; in a prompt
    # it is the beginning of a completion.
    is_prompt = fields.problem.rpartition(".")[2] in PROMPTS and not fields.answer_is_reply
    if is_prompt and messages[-1][0] != "user":
        raise ValueError(
            f"{fields.problem!r}: must end with a message of the user, as the beginning of a "
            f"completion cannot be given, got one of the {messages[-1][0]} at the end"
        )
    before, problem = split_prompt(messages)
    return Example(index, problem, take_answer(row, fields.answer), before, True)
