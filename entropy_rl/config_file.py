"""From a YAML file and dotted overrides to a checked config.

jsonargparse reads and merges; what can be wrong is found before, where the file or the option is known.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from entropy_rl.factories import check_value, unknown

Config = TypeVar("Config")

_HELP = ("-h", "--help")
_PRINT = "--print_config"


def parse_config(cls: type[Config], verb: str, arguments: Sequence[str]) -> Config:
    """Reads `--config FILE` and `--dotted.path VALUE`, in order, into a config.

    Args:
      cls: The config's dataclass.
      verb: The verb of the command line, for its help.
      arguments: The command line after the verb.

    Returns:
      The config; all its own checks have passed.

    Raises:
      ValueError: In one line: where, what, what is allowed.
      SystemExit: After `--help` or `--print_config`.
    """
    if any(argument in _HELP for argument in arguments):
        print(_help(cls, verb))
        raise SystemExit(0)
    given, files = _read_arguments(cls, arguments)
    if not any(argument.partition("=")[0] == _PRINT for argument in arguments):
        missing = list(_missing(cls, given, ""))
        if missing:
            where = " ".join(files) or "no --config FILE"
            raise ValueError(f"{where}: missing: {', '.join(missing)}")
    namespace = _make_parser(cls, verb).parse_args(list(arguments))
    return _build(cls, namespace.as_dict())


# ---------------------------------------------------------------------------------------------------
# Checking: every name and every type, where it stands
# ---------------------------------------------------------------------------------------------------


def _read_arguments(cls: type, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What the command line and the files on it give, merged in order, and those files."""
    given, files = {}, []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option == _PRINT:
            continue
        name = option.removeprefix("--")
        if name == option or not name:
            raise ValueError(f"{argument!r} is not allowed; allowed: --config FILE, --dotted.path VALUE")
        path = name.removesuffix("+").split(".")
        hint = None if name == "config" else _type_at(cls, option, path)
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ValueError(f"{option}: a value is missing")
        if name == "config":
            files.append(value)
            _merge(given, _read_file(cls, Path(value)))
            continue
        plain = value if name.endswith("+") else _check(hint, _read_value(option, value, hint), option)
        for key in reversed(path):
            plain = {key: plain}
        _merge(given, plain)
    return given, files


def _read_file(cls: type, file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ValueError(f"--config: cannot read {str(file)!r}: {reason}") from error
    except yaml.YAMLError as error:
        where = f":{error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise ValueError(f"{file}{where}: not valid YAML: {problem}") from error
    if not isinstance(content, dict):
        names = ", ".join(f.name for f in dataclasses.fields(cls))
        raise ValueError(f"{file}: expected a mapping of {names}")
    return _check(cls, content, f"{file}: ")


class _Loader(yaml.SafeLoader):
    """Refuses a name that stands twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _read_value(option: str, value: str, hint: Any) -> Any:
    """A value of the command line as YAML would have it; a text stands for itself."""
    if hint is str or (hint == str | None and value != "null"):
        return value
    try:
        return yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{option}: {value!r} is not valid YAML: {problem}") from error


def _check(hint: Any, value: Any, where: str) -> Any:
    """Checks a value against a type, sections with all that is in them.

    Args:
      hint: The type.
      value: The value.
      where: The path for an error; after "FILE: " a path may begin.

    Returns:
      The value.
    """
    section = _section(hint)
    if section is None or (value is None and section is not hint):
        check_value(value, hint, where)
        return value
    if value is None:  # `loss:` with every line of it commented out
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {value!r} is not allowed; expected a mapping")
    separator = "" if where.endswith(" ") else "."
    for name, inner in value.items():
        path = f"{where}{separator}{name}"
        _check(_type_at(section, path, [str(name)]), inner, path)
    return value


def _type_at(cls: type, where: str, path: Sequence[str]) -> Any:
    """The type of the field at a dotted path."""
    allowed = [field.name for field in dataclasses.fields(cls)]
    if path[0] not in allowed:
        options = ["config", "print_config"] if where == f"--{path[0]}" else []
        raise ValueError(unknown(where, path[0], allowed + options))
    hint = typing.get_type_hints(cls)[path[0]]
    if len(path) == 1:
        return hint
    section = _section(hint)
    if section is not None:
        return _type_at(section, where, path[1:])
    if typing.get_origin(hint) is not dict:
        raise ValueError(f"{where}: {path[0]!r} has no parts; allowed: --{where[2:].rpartition('.')[0]}")
    return typing.get_args(hint)[1]


def _section(hint: Any) -> type | None:
    """The dataclass behind a type, if it is that of a section (or null)."""
    for option in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(option):
            return option
    return None


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _missing(cls: type, given: Mapping[str, Any], above: str) -> typing.Iterator[str]:
    """Dotted paths of the fields that have no default and are not given."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        section = _section(hints[field.name])
        value = given.get(field.name)
        if section is not None and (required or value is not None):
            yield from _missing(section, value or {}, f"{above}{field.name}.")
        elif required and field.name not in given:
            yield f"{above}{field.name}"


def _build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """The dataclass of checked values; its own checks run here."""
    hints = typing.get_type_hints(cls)
    sections = {name: _section(hint) for name, hint in hints.items()}
    return cls(
        **{
            name: _build(sections[name], value) if sections[name] and value is not None else value
            for name, value in values.items()
            if name in sections
        }
    )


# ---------------------------------------------------------------------------------------------------
# The parser
# ---------------------------------------------------------------------------------------------------


class _Parser(ArgumentParser):
    """Says what is wrong in one line, without a page of usage."""

    def error(self, message: str, *_: Any) -> typing.NoReturn:
        # jsonargparse spreads one statement over lines.
        raise ValueError(" ".join(line.strip() for line in str(message).splitlines()))


def _make_parser(cls: type, verb: str) -> ArgumentParser:
    parser = _Parser(prog=f"entropy-rl {verb}", allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(cls, None)
    return parser


# ---------------------------------------------------------------------------------------------------
# The help
# ---------------------------------------------------------------------------------------------------

_ABOUT = (
    "A setting stands in a YAML file, as those in configs/, or on the command line; what comes later on the "
    "command line counts. Settings without a default are required."
)
_INDENT = 26
_TYPES = {int: "INT", float: "NUMBER", str: "TEXT", bool: "{true,false}", list: "LIST", dict: "MAPPING"}


def _help(cls: type, verb: str) -> str:
    """Every setting of a config with its type, its meaning and its default."""
    width = min(110, shutil.get_terminal_size().columns)
    lines = [
        f"usage: entropy-rl {verb} [--config FILE] [--dotted.path VALUE ...]",
        "",
        *textwrap.wrap(f"{docstring_parser.parse(cls.__doc__).short_description} {_ABOUT}", width),
        "",
        *_entry("--config FILE", "A YAML file.", width),
        *_entry(_PRINT, "Print all settings as YAML, and exit.", width),
        *_entry("--help", "Print this, and exit.", width),
        "",
    ]
    hints, documents = typing.get_type_hints(cls), _documents(cls)
    sections = {name: _section(hint) for name, hint in hints.items()}
    for field in dataclasses.fields(cls):
        if sections[field.name] is None:
            lines += _field(field, hints[field.name], field.name, documents[field.name], width)
    for name, section in sections.items():
        if section is None:
            continue
        lines += ["", *textwrap.wrap(f"{name}: {documents[name]}", width)]
        inner_hints, inner_documents = typing.get_type_hints(section), _documents(section)
        for field in dataclasses.fields(section):
            path, document = f"{name}.{field.name}", inner_documents[field.name]
            lines += _field(field, inner_hints[field.name], path, document, width)
    return "\n".join(lines)


def _documents(cls: type) -> dict[str, str]:
    """What the class's docstring says of each field."""
    return {p.arg_name: " ".join(p.description.split()) for p in docstring_parser.parse(cls.__doc__).params}


def _field(field: dataclasses.Field, hint: Any, path: str, document: str, width: int) -> list[str]:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        type_ = f"{{{','.join(options)}}}"
    else:
        inner = options[0] if len(options) < len(typing.get_args(hint)) else hint
        type_ = _TYPES[typing.get_origin(inner) or inner]
    default = field.default_factory if field.default is dataclasses.MISSING else lambda: field.default
    if default is not dataclasses.MISSING:
        value = default()
        document += f" Default: {value if isinstance(value, str) else json.dumps(value)}."
    return _entry(f"--{path} {type_}", document, width)


def _entry(option: str, text: str, width: int) -> list[str]:
    """An option, and what it means beside it or below."""
    lines = textwrap.wrap(text, width - _INDENT)
    head = f"  {option}"
    if len(head) + 2 > _INDENT:
        return [head, *(" " * _INDENT + line for line in lines)]
    return [head.ljust(_INDENT) + lines[0], *(" " * _INDENT + line for line in lines[1:])]
