"""Read the problems of a task, whose class may be a user's."""

from __future__ import annotations

from entropy_rl.tasks.task import Problem, Task
from entropy_rl.tasks.user_errors import method_of, naming_method


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
        messages = [text for message in problem.messages for text in message]
        if not all(isinstance(x, str) for x in (problem.prompt, problem.source, *messages)):
            raise ValueError(
                f"task.name: {where}: must return problems whose prompt, source and messages are "
                f"texts, got another type in problem {problem.id!r}"
            )
    return found


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
