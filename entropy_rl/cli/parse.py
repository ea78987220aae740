"""Parse YAML files and dotted overrides into a checked config.

Names and types are checked here, so that an error can name the file or the option; the config
classes check ranges.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from entropy_rl.cli.help import config_help, positional_fields, positional_names
from entropy_rl.config.checks import shown
from entropy_rl.config.files import error_text, require_file
from entropy_rl.config.renames import current_config
from entropy_rl.config.values import (
    check_value,
    default_of,
    has_default,
    mapping_of,
    section_of,
    unknown,
)
from entropy_rl.runs.stored import is_recorded

Config = TypeVar("Config")

_PRINT = "--print_config"
_MOST_VALUES, _MOST_CHARACTERS, _DEEPEST = 200_000, 2**20, 100


def parse_config(cls: type[Config], verb: str, arguments: Sequence[str]) -> Config:
    """Parse `--config FILE` and `--dotted.path VALUE`, in order, into a config.

    Later values override earlier ones. Sections are merged, other values replaced; `--advantage+
    VALUE` appends to a list, given or default.

    Args:
      cls: The config dataclass. Its class variable POSITIONAL, if any, has the dotted paths of the
        positional fields, in order, of which a list takes all remaining arguments. Its ALSO_READS
        has other config classes whose files it reads, ignoring the fields that `cls` lacks.
      verb: The verb of the command line, for the help.
      arguments: The command line after the verb.

    Returns:
      The validated config.

    Raises:
      ValueError: In one line, as `PATH: must be Y, got X`.
      SystemExit: After `--help` or `--print_config`.
    """
    if "-h" in arguments or "--help" in arguments:
        print(config_help(cls, verb))
        raise SystemExit(0)
    given, files = _read_arguments(cls, [argument for argument in arguments if argument != _PRINT])
    if _PRINT in arguments:
        print(yaml.safe_dump(_filled(cls, given), sort_keys=False), end="")
        raise SystemExit(0)
    missing = list(_missing(cls, given, ""))
    if missing:
        where = " ".join(files) or (
            "the command line" if positional_fields(cls) else "no --config FILE"
        )
        raise ValueError(f"{where}: missing: {', '.join(missing)}")
    return _build(cls, given)


# --------------------------------------------------------------------------------------------------
# Reading: files and options, in order
# --------------------------------------------------------------------------------------------------


def _read_arguments(cls: type, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the merged values of the command line and its files, and those files."""
    given, files = {}, []
    rest, positional = iter(arguments), list(positional_fields(cls))
    for argument in rest:
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--")
        if name == option or not name:
            field = positional[0] if positional else None
            if field is None or not name:
                places = "".join(f"{place}, " for place in positional_names(cls))
                raise ValueError(
                    f"command line: must be {places}--config FILE or --dotted.path VALUE, got "
                    f"{argument!r}"
                )
            path = field.split(".")
            hint = _type_at(cls, field, path)
            if typing.get_origin(hint) is list:  # it takes all remaining arguments
                plain = _at(given, path, []) + [argument]
            else:
                plain = argument
                positional.pop(0)
            _put(cls, given, path, _check(hint, plain, field))
            continue
        if option == _PRINT:
            raise ValueError(f"{_PRINT}: must have no value, got {value!r}")
        path = name.removesuffix("+").split(".")
        hint = None if name == "config" else _type_at(cls, option, path)
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ValueError(f"{option}: must have a value")
        if name == "config":
            files.append(value)
            for field, content in _read_file(cls, Path(value)).items():
                _put(cls, given, [field], content)
        else:
            plain = _read_value(option, value, hint)
            if name.endswith("+"):
                there = _at(_filled(cls, given), path, None)
                there = there if isinstance(there, list) else []
                plain = there + (plain if isinstance(plain, list) else [plain])
            _put(cls, given, path, _check(hint, plain, option))
    return given, files


def _put(cls: type | None, into: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value at a dotted path; sections are merged, so that an empty one changes nothing.

    For an optional section `{}` sets its defaults.
    """
    name, *rest = path
    hint = None if cls is None else typing.get_type_hints(cls)[name]
    section = section_of(hint)
    if rest:
        if not isinstance(into.get(name), dict):
            into[name] = {}
        _put(section, into[name], rest, value)
    elif section is not None and isinstance(value, dict):
        if section is not hint and not isinstance(into.get(name), dict):
            into[name] = {}
        for inner, content in value.items():
            _put(cls, into, [name, inner], content)
    else:
        into[name] = value


def _at(given: Mapping[str, Any], path: Sequence[str], default: Any) -> Any:
    for name in path:
        if not isinstance(given, Mapping) or name not in given:
            return default
        given = given[name]
    return given


def _read_file(cls: type, file: Path) -> dict[str, Any]:
    try:
        if not file.is_dir():  # which is said in other words below
            require_file(file)
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        if isinstance(error, FileNotFoundError):
            reason = os.strerror(errno.ENOENT)
        raise ValueError(f"--config: cannot read {str(file)!r}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"--config: {error}") from None
    try:
        content = _load(text)
    except RecursionError:
        raise ValueError(f"{file}: must be valid YAML, got one nested too deeply") from None
    except yaml.YAMLError as error:
        where = f":{error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise ValueError(f"{file}{where}: must be valid YAML, got an error: {problem}") from error
    if not isinstance(content, dict):
        names = ", ".join(f.name for f in dataclasses.fields(cls))
        raise ValueError(f"{file}: must be a mapping of {names}, got {content!r:.60}")
    if is_recorded(file):
        content = current_config(content)
    own = {field.name for field in dataclasses.fields(cls)}
    others = {f.name for other in getattr(cls, "ALSO_READS", ()) for f in dataclasses.fields(other)}
    content = {name: value for name, value in content.items() if name in own or name not in others}
    return _check(cls, content, f"{file}: ")


class _Loader(yaml.SafeLoader):
    """Refuse a key that is given twice; YAML would silently take the last one.

    What a constructor raises, such as for a date that does not exist, gets the line of its node.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:
            value = shown(node.value) if isinstance(node, yaml.ScalarNode) else "a collection"
            raise yaml.constructor.ConstructorError(
                problem=f"{value} is no {node.tag.rpartition(':')[2]}",
                problem_mark=node.start_mark,
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{shown(key.value)} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _load(text: str) -> Any:
    """Loads YAML whose aliases, written out, make no more than a config can have.

    An alias can stand inside its own anchor, or a few lines for 10^9 values.
    """
    if len(text) > _MOST_CHARACTERS:  # a megabyte takes seconds
        raise yaml.YAMLError(f"more than {_MOST_CHARACTERS} characters")
    depth = itertools.accumulate({"[": 1, "{": 1, "]": -1, "}": -1}.get(c, 0) for c in text)
    if max(depth, default=0) > _DEEPEST:  # takes the square of it
        raise RecursionError
    content = yaml.load(text, _Loader)
    open_, count = [content], 0
    while open_:
        value = open_.pop()
        count += 1
        if count > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES} values, aliases written out")
        if isinstance(value, dict):
            open_ += value.values()
        elif isinstance(value, list | tuple | set):
            open_ += value
    return content


def _read_value(option: str, value: str, hint: Any) -> Any:
    """Parse a value of the command line as YAML, unless the field is a string."""
    if hint is str or (hint == str | None and value != "null"):
        return value
    try:
        plain = _load(value)
        # YAML reads the prompt "Q: {problem}" as a mapping.
        return value if hint is Any and _has_placeholder(plain) else plain
    except (yaml.YAMLError, RecursionError) as error:
        if hint is Any:  # a prompt such as "{problem} Put the answer in \\boxed{}."
            return value
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        problem = problem or error_text(error)
        raise ValueError(f"{option}: must be valid YAML ({problem}), got {shown(value)}") from error


def _has_placeholder(plain: Any) -> bool:
    """Whether a value has the mapping {problem: null}, the YAML of "{problem}"."""
    return isinstance(plain, dict) and (
        plain == {"problem": None} or any(map(_has_placeholder, plain.values()))
    )


# --------------------------------------------------------------------------------------------------
# Checking: names and types
# --------------------------------------------------------------------------------------------------


def _check(hint: Any, value: Any, where: str) -> Any:
    """Check a value, or a section recursively, against a type.

    Args:
      hint: The type.
      value: The value.
      where: The path for an error, or "FILE: " before a path.

    Returns:
      The value, with integers converted to floats for float fields.
    """
    section = section_of(hint)
    if section is None or (value is None and section is not hint):
        return check_value(value, hint, where)
    if value is None:  # `loss:` with all its lines commented out
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be a mapping, got {shown(value)}")
    separator = "" if where.endswith(" ") else "."
    paths = {name: f"{where}{separator}{name}" for name in value}
    return {
        name: _check(_type_at(section, paths[name], [str(name)]), inner, paths[name])
        for name, inner in value.items()
    }


def _type_at(cls: type, where: str, path: Sequence[str]) -> Any:
    """Return the type of the field at a dotted path."""
    allowed = [field.name for field in dataclasses.fields(cls)]
    if path[0] not in allowed:
        options = ["config", "print_config"] if where == f"--{path[0]}" else []
        raise ValueError(unknown(where, path[0], allowed + options))
    hint = typing.get_type_hints(cls)[path[0]]
    if len(path) == 1:
        return hint
    section = section_of(hint)
    if section is not None:
        return _type_at(section, where, path[1:])
    if mapping_of(hint) is None:
        raise ValueError(
            f"{where}: must be --{where[2:].rpartition('.')[0]}, because {path[0]!r} has no fields"
        )
    return typing.get_args(mapping_of(hint))[1]


def _missing(cls: type, given: Mapping[str, Any], above: str) -> Iterator[str]:
    """Yield the dotted paths of required fields that are not given."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        section = section_of(hints[field.name])
        value = given.get(field.name)
        if section is not None and (not has_default(field) or value is not None):
            yield from _missing(section, value or {}, f"{above}{field.name}.")
        elif not has_default(field) and field.name not in given:
            yield f"{above}{field.name}"


def _filled(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given values with the defaults of the other fields, or null without one."""
    hints, filled = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        section, value = section_of(hints[field.name]), given.get(field.name)
        if section is not None:
            optional = section is not hints[field.name]
            filled[field.name] = (
                None if optional and value is None else _filled(section, value or {})
            )
        elif field.name in given:
            filled[field.name] = value
        else:
            filled[field.name] = default_of(field) if has_default(field) else None
    return filled


def _build(cls: type[Config], given: Mapping[str, Any]) -> Config:
    """Build the dataclass from checked values, which runs its own checks."""
    hints, values = typing.get_type_hints(cls), dict(given)
    for field in dataclasses.fields(cls):
        section, value = section_of(hints[field.name]), given.get(field.name)
        if section is not None and (value is not None or not has_default(field)):
            values[field.name] = _build(section, value or {})
    return cls(**values)
