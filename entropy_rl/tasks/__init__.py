"""Tasks: built-in ones by name, a user's by `module:Class`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from entropy_rl.config.checks import require
from entropy_rl.config.common import EpisodesConfig
from entropy_rl.config.files import error_text
from entropy_rl.config.registry import call_factory, import_object, require_module, type_hints
from entropy_rl.config.values import unknown
from entropy_rl.tasks.environments.environment import is_environment
from entropy_rl.tasks.environments.task import EnvironmentTask
from entropy_rl.tasks.judging import as_judgement, correct_at
from entropy_rl.tasks.problems import problems_of
from entropy_rl.tasks.task import Demonstration, Judgement, Problem, Task, Verdict

__all__ = [
    "Demonstration",
    "Judgement",
    "Problem",
    "Task",
    "Verdict",
    "as_judgement",
    "closing",
    "load_task",
    "problems_of",
]

_BUILT_IN = {
    "arithmetic": "entropy_rl.tasks.arithmetic:Arithmetic",
    "countdown": "entropy_rl.tasks.countdown:Countdown",
    "countdown_turns": "entropy_rl.tasks.countdown.turns:CountdownTurns",
    "math": "entropy_rl.tasks.math:Math",
    "mixture": "entropy_rl.tasks.mixture_task:Mixture",
    "reasoning_gym": "entropy_rl.tasks.reasoning_gym:ReasoningGym",
    "textarena": "entropy_rl.tasks.textarena:TextArena",
    "tools": "entropy_rl.tasks.tools:Tools",
    "two_prompts": "entropy_rl.tasks.two_prompts:TwoPrompts",
}


def load_task(
    name: str,
    args: Mapping[str, Any] = MappingProxyType({}),
    episodes: EpisodesConfig | None = None,
) -> Task:
    """Build a task.

    Args:
      name: A built-in task, such as "math" (docs/tasks.md lists them), or "module:Class" for a
        user's class.
      args: Its keyword arguments.
      episodes: Limits of episodes; None for the defaults.

    Returns:
      The task. A task with the methods `reset` and `step` of an `Environment` is returned as an
      `EnvironmentTask`, which steps it in worker processes.

    Raises:
      ValueError: If there is no such task or argument, the task rejects a value, or `episodes` is
        set for a task that is no environment.
    """
    what = 'a name, such as "math" or "module:Class"'
    require(isinstance(name, str), "load_task: name", name, what)
    factory = _factory(name)
    # Before the call, which might be one of `os.system`.
    _require_method(factory, "problems", name)
    try:
        task = call_factory(factory, args, "task.args")
    except ValueError as error:
        if name in _BUILT_IN or str(error).startswith("task."):
            raise
        raise ValueError(f"task.name: {name}: {error_text(error)}") from error
    if is_environment(task):
        require_module("task.name", name)
        where = _BUILT_IN.get(name, name)
        return EnvironmentTask(task, where, args, episodes or EpisodesConfig())
    if episodes is not None:
        raise ValueError(
            f"task.episodes: must be null for a task without `reset` and `step`, got that of {name}"
        )
    _require_method(task, "judge", name)
    correct_at(task)
    return task


def _require_method(task: object, method: str, name: str) -> None:
    if not callable(getattr(task, method, None)):
        raise ValueError(f"task.name: must be a class with a method {method!r}, got {name!r}")


def argument_types(name: str) -> dict[str, Any]:
    """Return the annotations of a task's arguments by name.

    Args:
      name: As in `load_task`.

    Raises:
      ValueError: If there is no such task.
    """
    return type_hints(_factory(name))


def words_of_task(
    name: str,
) -> tuple[Mapping[str, Sequence[str]] | None, Sequence[str] | None]:
    """Return the `words` and `reflective` of a task; None for what it has not.

    Args:
      name: As in `load_task`.

    Raises:
      ValueError: If there is no such task.
    """
    factory = _factory(name)
    return getattr(factory, "words", None), getattr(factory, "reflective", None)


def _factory(name: str) -> Callable[..., Any]:
    if name not in _BUILT_IN and ":" not in name:
        raise ValueError(unknown("task.name", name, [*_BUILT_IN, "module:Class"]))
    return import_object("task.name", _BUILT_IN.get(name, name))


def closing(task: Task) -> contextlib.AbstractContextManager:
    """A context manager that closes the task at exit, for example its verifier processes."""
    return contextlib.closing(task) if hasattr(task, "close") else contextlib.nullcontext()
