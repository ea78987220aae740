"""Describe where the problems and answers of data files were found; for `data show`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from entropy_rl.tasks.math.examples import Examples


def describe_fields(examples: Examples) -> Iterator[tuple[str, str]]:
    """Yield entries on the fields that no option names, on prompts of the data, on rows left out.

    Args:
      examples: The examples of data files.
    """
    fields, rows = examples.fields, examples.rows
    if not fields.named[0]:
        yield "problem", f"field {fields.problem!r}, found by its name"
    if not fields.named[1]:
        how = "the last message of the assistant" if fields.answer_is_reply else "found by its name"
        yield "answer", f"field {fields.answer!r}, {how}"
    is_prompt = fields.problem.rpartition(".")[2] == "prompt"
    prompts = [row for row in rows if row.chat or is_prompt]
    if prompts:
        chat = [row for row in rows if row.chat]
        system = sum(bool(row.before) and row.before[0][0] == "system" for row in chat)
        several = sum(any(role != "system" for role, _ in row.before) for row in chat)
        boxed = sum(
            any(
                r"\boxed" in text
                for role, text in (*row.before, ("user", row.problem))
                if role != "assistant"
            )
            for row in prompts
        )
        if chat:
            yield (
                "chat messages",
                (
                    f"{len(chat):,} of {len(rows):,} prompts; {system:,} with a system message, "
                    f"{several:,} with several turns"
                ),
            )
        yield (
            "prompts",
            (
                f"{boxed:,} of {len(prompts):,} ask for \\boxed{{}} and are used as they are; "
                "task.args.prompt null adds `boxed` to the others"
            ),
        )
    if examples.left_out:
        yield "left out", examples.message
