"""Tasks within the settings of another task, and messages before their questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropy_rl.config.checks import require
from entropy_rl.config.registry import require_module
from entropy_rl.config.values import unknown
from entropy_rl.tasks import load_task
from entropy_rl.tasks.environments.task import EnvironmentTask
from entropy_rl.tasks.task import Task


def load_nested(path: str, spec: Mapping[str, Any], in_workers: bool = False) -> Task:
    """Load a task of a single turn that another task names.

    Args:
      path: Dotted path of the entry.
      spec: The entry, {name: ..., args: {...}}.
      in_workers: Whether worker processes load it too.

    Raises:
      ValueError: There is no such task, it rejects a value, or it has several turns.
    """
    require(isinstance(spec, Mapping), path, spec, "a mapping {name: ..., args: {...}}")
    for name in spec:
        if name not in ("name", "args"):
            raise ValueError(unknown(f"{path}.{name}", name, ["name", "args"]))
    require("name" in spec, path, dict(spec), "a mapping {name: ..., args: {...}}")
    name, args = spec["name"], spec.get("args")
    require(isinstance(name, str), f"{path}.name", name, "the name of a task")
    if in_workers:
        require_module(f"{path}.name", name)
    require(isinstance(args, Mapping | None), f"{path}.args", args, "a mapping of arguments")
    try:
        loaded = load_task(name, args or {})
    except ValueError as error:
        raise ValueError(str(error).replace("task.", f"{path}.", 1)) from error
    is_single = not isinstance(loaded, EnvironmentTask)
    require(is_single, f"{path}.name", name, "a task of a single turn")
    return loaded


def read_dialogues(path: str, dialogues: list[Any]) -> tuple[tuple[str, str], ...]:
    """Join worked examples to the messages (role, content) before a question.

    Args:
      path: Dotted path of the list.
      dialogues: Each a list of messages {role: ..., content: ...}.

    Raises:
      ValueError: An entry has another form.
    """
    messages = []
    for i, dialogue in enumerate(dialogues):
        require(isinstance(dialogue, list), f"{path}[{i}]", dialogue, "a list of messages")
        for j, message in enumerate(dialogue):
            is_message = isinstance(message, Mapping) and set(message) == {"role", "content"}
            is_text = is_message and all(isinstance(text, str) for text in message.values())
            where = f"{path}[{i}][{j}]"
            require(is_text, where, message, "a message {role: ..., content: ...}")
            messages.append((message["role"], message["content"]))
    return tuple(messages)
