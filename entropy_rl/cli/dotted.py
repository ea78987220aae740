"""Dotted paths in a config: the type of a field, and values in nested mappings and lists."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.config.synonyms import suggested_field
from entropy_rl.config.values import default_of, has_default, option_of, section_of, unknown


def type_at(cls: type, where: str, path: Sequence[str]) -> Any:
    """Return the type of the field at a dotted path.

    Args:
      cls: The config class.
      where: The option, or the path after "FILE: ", for the error.
      path: The names of the path; those inside a list are indices.

    Raises:
      ValueError: If there is no such field.
    """
    hint: Any = cls
    for depth in range(len(path)):
        hint = _inner_type(cls, hint, where, path[: depth + 1])
    return hint


def _inner_type(cls: type, hint: Any, where: str, path: Sequence[str]) -> Any:
    """Return the type of what has the last name of a path, in a value of type `hint`."""
    name = path[-1]
    section = section_of(hint)
    if section is not None:
        allowed = [field.name for field in dataclasses.fields(section)]
        if name in allowed:
            return typing.get_type_hints(section)[name]
        dashes = "--" if where.startswith("--") else ""
        suggested = suggested_field(cls, path)
        if dashes and len(path) == 1:
            allowed += ["config", "print_config"]
        raise ValueError(unknown(where, name, allowed, suggested and f"{dashes}{suggested}"))
    if hint is Any:
        return Any
    items, mapping = option_of(hint, list), option_of(hint, dict)
    if items is not None and (name.isdecimal() or mapping is None):
        if not name.isdecimal():
            raise ValueError(f"{where}: must have an index of the list in place of {name!r}")
        return typing.get_args(items)[0]
    if mapping is None:
        above = ".".join(path[:-1])
        raise ValueError(f"{where}: must be --{above}, because {path[-2]!r} has no fields")
    return typing.get_args(mapping)[1]


def inside(hint: Any, name: str) -> Any:
    """Return the type of an item of a list type, or of a value of a mapping type; else `Any`."""
    items, mapping = option_of(hint, list), option_of(hint, dict)
    if items is not None and name.isdecimal():
        return typing.get_args(items)[0]
    return Any if mapping is None else typing.get_args(mapping)[1]


def item_type(hint: Any) -> Any:
    """Return the type of the items of a list type; None for another type."""
    items = option_of(hint, list)
    return None if items is None else typing.get_args(items)[0]


def put(
    cls: type | None, into: dict[str, Any] | list[Any], path: Sequence[str], value: Any, where: str
) -> None:
    """Set a value at a dotted path; sections are merged, so that an empty one changes nothing.

    For an optional section `{}` sets its defaults. An index sets an entry of a list; one that is
    not given begins with its default.

    Args:
      cls: The config class of `into`, None where it is no section.
      into: What is given so far.
      path: The path.
      value: The value.
      where: The option, for the error.

    Raises:
      ValueError: If a list has no entry with that index.
    """
    name, *rest = path
    if isinstance(into, list):
        index = _index(into, name, where)
        if rest:
            into[index] = _copied(into[index])
            put(None, into[index], rest, value, where)
        else:
            into[index] = value
        return
    hint = None if cls is None else typing.get_type_hints(cls)[name]
    section = section_of(hint)
    if rest:
        if into.get(name) is None and option_of(hint, list) is not None:
            (field,) = (field for field in dataclasses.fields(cls) if field.name == name)
            usual = default_of(field) if has_default(field) and name not in into else None
            into[name] = usual or []
        into[name] = _copied(into.get(name))
        put(section, into[name], rest, value, where)
    elif section is not None and isinstance(value, dict):
        if section is not hint and not isinstance(into.get(name), dict):
            into[name] = {}
        for inner, content in value.items():
            put(cls, into, [name, inner], content, where)
    else:
        into[name] = value


def _index(items: list[Any], name: str, where: str) -> int:
    if not items:
        raise ValueError(f"{where}: must have no index, because the list is empty, got {name!r}")
    if not name.isdecimal() or int(name) >= len(items):
        raise ValueError(
            f"{where}: must have an index from 0 to {len(items) - 1} of the list, got {name!r}"
        )
    return int(name)


def _copied(value: Any) -> Any:
    """Copy a container, which an alias of YAML may share; a mapping for anything else."""
    if isinstance(value, list):
        return list(value)
    return dict(value) if isinstance(value, dict) else {}


def value_at(given: Any, path: Sequence[str]) -> Any:
    """Return the value at a dotted path; None if there is none."""
    for name in path:
        if isinstance(given, Mapping) and name in given:
            given = given[name]
        elif isinstance(given, list) and name.isdecimal() and int(name) < len(given):
            given = given[int(name)]
        else:
            return None
    return given
