"""Types of the arguments that an entry {name: ..., ARGUMENT: VALUE} of a config has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.cli import method_names
from entropy_rl.cli.dotted import inside, value_at
from entropy_rl.config.registry import import_object, type_hints


def argument_type(
    given: Mapping[str, Any], names: Mapping[tuple[str, ...], Any], path: Sequence[str]
) -> Any:
    """Return the annotation of an argument of a method, a logger or a task; `Any` without one.

    Args:
      given: The values of a config.
      names: Path of an entry -> its name, where that is not the one in `given`.
      path: Dotted path of the argument, or of a value in it.
    """
    for depth in range(len(path) - 1, 0, -1):
        entry, rest = path[:depth], path[depth:]
        name = names.get(tuple(entry)) or value_at(given, [*entry, "name"])
        if path[0] == "task":  # whose arguments have a mapping of their own
            separator, rest = rest[0], rest[1:]
            name = name if separator == "args" else None
        if not isinstance(name, str) or not rest:
            continue
        try:
            hint = _types(entry, name).get(rest[0], Any)
        except ValueError:  # which the program reports
            return Any
        for inner in rest[1:]:
            hint = inside(hint, inner)
        return hint
    return Any


def _types(entry: Sequence[str], name: str) -> Mapping[str, Any]:
    """Return the types of the arguments of what an entry names; empty if they are not known."""
    # The modules import more than help needs.
    if entry[0] == "task":
        from entropy_rl.tasks import argument_types

        return argument_types(name)
    if ":" in name:
        found = import_object(".".join(entry), name)
        return type_hints(found) if callable(found) else {}
    if list(entry[:2]) == ["run", "loggers"]:
        from entropy_rl.runs.loggers import argument_types

        return argument_types(name)
    return method_names.argument_types(name)
