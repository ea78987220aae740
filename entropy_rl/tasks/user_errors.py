"""Name the class and the method of a task, which may be a user's, in the errors of its code."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entropy_rl.tasks.task import JudgeError
from entropy_rl.tasks.worker import describe

_PACKAGE = Path(__file__).parents[1]


def method_of(task: Any, method: str) -> str:
    """Return CLASS.METHOD, of an environment's own class."""
    return f"{type(getattr(task, 'environment', task)).__name__}.{method}"


@contextlib.contextmanager
def naming_method(
    task: Any,
    method: str,
    caught: tuple[type[BaseException], ...] = (Exception, SystemExit),
    raised: type[Exception] = ValueError,
) -> Iterator[None]:
    """Name a method of a task in the errors of its code.

    An `OSError`, a `MemoryError` and a `JudgeError` say what is wrong, as do a ValueError of this
    package and one that begins with `task.` or `split: `; they are passed on.

    Args:
      task: The task.
      method: The method that is called within the context.
      caught: The other errors that are changed.
      raised: What they become, as `task.name: CLASS.METHOD: ERROR: TEXT`.
    """
    try:
        yield
    except (OSError, MemoryError, JudgeError):
        raise
    except caught as error:
        if isinstance(error, ValueError) and _says_where(error):
            raise
        raise raised(f"task.name: {method_of(task, method)}: {describe(error)}") from error


def _says_where(error: ValueError) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    is_ours = Path(frame.f_code.co_filename).is_relative_to(_PACKAGE)
    return is_ours or str(error).startswith(("task.", "split: "))
