"""Read the problems of a task, whose class may be a user's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from entropy_rl.config.checks import shown
from entropy_rl.config.registry import type_hints
from entropy_rl.tasks.task import Problem, Task
from entropy_rl.tasks.user_errors import method_of, naming_method

# The fields of a problem that are plain values, and their types.
_PLAIN = {name: hint for name, hint in type_hints(Problem).items() if hint in (int, str, bool)}


def problems_of(task: Task, split: str, field: str) -> list[Problem]:
    """Return the problems of a split, after a check of their types.

    Args:
      task: The task, whose error for an unknown split begins with `split`.
      split: The split.
      field: The config field that names it, for that error.

    Raises:
      ValueError: There is no such split; the task fails, or gives something else than problems.
    """
    where = method_of(task, "problems")
    try:
        with naming_method(task, "problems"):
            problems = task.problems(split)
            found = list(problems) if hasattr(problems, "__len__") else None
    except ValueError as error:
        place, colon, text = str(error).partition(": ")
        if place != "split":
            raise
        raise ValueError(f"{field}{colon}{text}") from error
    if found is None:
        got = type(problems).__name__
        raise ValueError(f"task.name: {where}: must return a list of problems, got {got}")
    for problem in found:
        if not isinstance(problem, Problem):
            got = type(problem).__name__
            raise ValueError(f"task.name: {where}: must return objects of Problem, got {got}")
        for name, must_be, value in _wrong_fields(problem):
            raise ValueError(
                f"task.name: {where}: problem {problem.id!r}: {name} must be {must_be}, got "
                f"{shown(value)}"
            )
    return found


def _wrong_fields(problem: Problem) -> Iterator[tuple[str, str, Any]]:
    """(name, what it must be, value) of fields that samples, digests or workers cannot hold."""
    for name, kind in _PLAIN.items():
        if not isinstance(value := getattr(problem, name), kind):
            yield name, f"of type {kind.__name__}", value
    if not _is_messages(problem.messages):
        yield "messages", "pairs (role, content) of texts", problem.messages
    if not _is_json_object(problem.chat_template_kwargs):
        yield "chat_template_kwargs", "a mapping that JSON can hold", problem.chat_template_kwargs


def _is_messages(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(
        isinstance(message, tuple | list)
        and len(message) == 2
        and all(isinstance(text, str) for text in message)
        for message in value
    )


def _is_json_object(value: Any) -> bool:
    try:
        return isinstance(value, Mapping) and json.loads(json.dumps(dict(value))) == value
    except (TypeError, ValueError, RecursionError):
        return False


def prompts_per_problem(task: Task, split: str) -> int:
    """Return the prompts of each problem of a split of a task; 1 for a task that does not say.

    Raises:
      ValueError: The task fails, or says something else than a number >= 1.
    """
    if not hasattr(task, "prompts_per_problem"):
        return 1
    with naming_method(task, "prompts_per_problem"):
        count = task.prompts_per_problem(split)
    if not isinstance(count, int) or count < 1:
        where = method_of(task, "prompts_per_problem")
        raise ValueError(f"task.name: {where}: must be a number >= 1, got {count!r}")
    return count
