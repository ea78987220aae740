"""Parse YAML files and dotted overrides into a checked config.

Names and types are checked here, so that an error can name the file or the option; the config
classes check ranges.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from entropy_rl.cli.dotted import item_type, put, type_at, value_at
from entropy_rl.cli.help import config_help, positional_fields, positional_names
from entropy_rl.cli.other_verbs import verbs_of
from entropy_rl.cli.yaml_text import load_yaml
from entropy_rl.config.checks import shown
from entropy_rl.config.files import error_text, require_file
from entropy_rl.config.recipes import find_config
from entropy_rl.config.renames import current_config
from entropy_rl.config.values import check_value, default_of, has_default, section_of
from entropy_rl.runs.stored import is_recorded

Config = TypeVar("Config")

_PRINT = "--print_config"


def parse_config(
    cls: type[Config],
    verb: str,
    arguments: Sequence[str],
    check: Callable[[Config], object] | None = None,
) -> Config:
    """Parse `--config FILE` and `--dotted.path VALUE` into a config.

    Options override files, wherever they are; among files, and among options, later values override
    earlier ones. Sections are merged, other values replaced; `--advantage+ VALUE` appends to a
    list, given or default, and `--advantage.1.alpha VALUE` changes an entry of one.

    Args:
      cls: The config dataclass. Its class variable POSITIONAL, if any, has the dotted paths of the
        positional fields, in order, of which a list takes all remaining arguments. Its ALSO_READS
        has other config classes whose files it reads, ignoring the fields that `cls` lacks.
      verb: The verb of the command line, for the help.
      arguments: The command line after the verb.
      check: What else to check of a config that is printed.

    Returns:
      The validated config.

    Raises:
      ValueError: In one line, as `PATH: must be Y, got X`.
      SystemExit: After `--help` or `--print_config`. What is printed is checked, unless the command
        line has nothing else: then it is a template, with null where a field has no default.
    """
    if "-h" in arguments or "--help" in arguments:
        print(config_help(cls, verb))
        raise SystemExit(0)
    others = [argument for argument in arguments if argument != _PRINT]
    given, files = _read_arguments(cls, others)
    if _PRINT in arguments:
        print(yaml.safe_dump(_filled(cls, given), sort_keys=False), end="", flush=True)
        if not others:
            raise SystemExit(0)
    missing = list(_missing(cls, given, ""))
    if missing:
        where = " ".join(files) or (
            "the command line" if positional_fields(cls) else "no --config FILE"
        )
        raise ValueError(f"{where}: missing: {', '.join(missing)}")
    config = _build(cls, given)
    if _PRINT in arguments:
        if check is not None:
            check(config)
        raise SystemExit(0)
    return config


def recipe_arguments(config: str, overrides: Mapping[str, Any]) -> list[str]:
    """Return the command line of a config file with overrides, after its verb.

    Args:
      config: The file.
      overrides: Dotted path -> value.
    """
    options = [
        part
        for path, value in overrides.items()
        for part in (f"--{path}", value if isinstance(value, str) else json.dumps(value))
    ]
    return ["--config", config, *options]


# --------------------------------------------------------------------------------------------------
# Reading: files, then options
# --------------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    """A setting of the command line.

    Attributes:
      where: The option, or the field of a positional argument, for errors.
      path: The names of the dotted path.
      value: The text.
      appends: Whether the value is added to a list.
      is_text: Whether the text is the value, and no YAML.
    """

    where: str
    path: list[str]
    value: str
    appends: bool = False
    is_text: bool = False


def _read_arguments(cls: type, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the merged values of the command line and its files, and those files."""
    files, settings = _split_arguments(cls, arguments)
    given: dict[str, Any] = {}
    for file in files:
        for field, content in _read_file(cls, find_config(file)).items():
            put(cls, given, [field], content, "--config")
    # The name of the task says which of its arguments are texts.
    for setting in sorted(settings, key=lambda setting: setting.path != ["task", "name"]):
        path, where = setting.path, setting.where
        hint = type_at(cls, where, path)
        if setting.is_text:
            plain: Any = setting.value
        else:
            plain = _read_value(where, setting.value, _text_type(given, setting, hint))
        if setting.appends:
            there = value_at(_filled(cls, given), path)
            there = there if isinstance(there, list) else []
            plain = there + (plain if isinstance(plain, list) else [plain])
        put(cls, given, path, _check(cls, path, hint, plain, where), where)
    return given, files


def _split_arguments(cls: type, arguments: Sequence[str]) -> tuple[list[str], list[_Setting]]:
    """Return the files and the settings of a command line, each in order."""
    files, settings = [], []
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
            is_list = typing.get_origin(type_at(cls, field, path)) is list
            if not is_list:  # which takes all remaining arguments
                positional.pop(0)
            settings.append(_Setting(field, path, argument, appends=is_list, is_text=True))
            continue
        if option == _PRINT:
            raise ValueError(f"{_PRINT}: must have no value, got {value!r}")
        path = name.removesuffix("+").split(".")
        if name != "config":
            type_at(cls, option, path)
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ValueError(f"{option}: must have a value")
        if name == "config":
            files.append(value)
        else:
            settings.append(_Setting(option, path, value, appends=name.endswith("+")))
    return files, settings


def _text_type(given: Mapping[str, Any], setting: _Setting, hint: Any) -> Any:
    """Return the type that says whether a value of the command line is a text.

    That is the type of the items for an addition to a list, and the annotation of a task's argument
    if the task can be imported.
    """
    if setting.appends:
        items = item_type(hint)
        return hint if items is None or setting.value.startswith("[") else items
    task = value_at(given, ["task", "name"])
    if hint is not Any or setting.path[:-1] != ["task", "args"] or not isinstance(task, str):
        return hint
    from entropy_rl.tasks import argument_types  # imports numpy, which help does without

    try:
        return argument_types(task).get(setting.path[-1], hint)
    except ValueError:  # which the program reports
        return hint


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
        content = load_yaml(text)
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
    if not content.keys() <= own and (verbs := verbs_of(content.keys())):
        names = ", ".join(f"`{verb}`" for verb in verbs)
        raise ValueError(f"{file}: must be a config of this verb, got one of {names}")
    return _check(cls, [], cls, content, f"{file}: ")


def _read_value(option: str, value: str, hint: Any) -> Any:
    """Parse a value of the command line as YAML, unless the field is a string."""
    if hint is str or (hint == str | None and value != "null"):
        return value
    try:
        plain = load_yaml(value)
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


def _check(cls: type, path: Sequence[str], hint: Any, value: Any, where: str) -> Any:
    """Check a value, or a section recursively, against a type.

    Args:
      cls: The config class.
      path: The path of the value in it.
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
    checked = {}
    for name, inner in value.items():
        of_name, place = [*path, str(name)], f"{where}{separator}{name}"
        checked[name] = _check(cls, of_name, type_at(cls, place, of_name), inner, place)
    return checked


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
