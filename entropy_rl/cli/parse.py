"""Parse YAML files and dotted overrides into a checked config.

Names and types are checked here, so that an error can name the file or the option; the config
classes check ranges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import yaml

from entropy_rl.cli.arguments import argument_type
from entropy_rl.cli.dotted import item_type, put, type_at, value_at
from entropy_rl.cli.help import config_help, positional_fields, positional_names
from entropy_rl.cli.other_verbs import verbs_of
from entropy_rl.config.checks import shown
from entropy_rl.config.files import error_text, require_file
from entropy_rl.config.recipes import find_config
from entropy_rl.config.renames import current_config
from entropy_rl.config.values import (
    check_value,
    default_of,
    has_default,
    options_of,
    plain_value,
    section_of,
    unused_fields,
)
from entropy_rl.runs.stored import is_recorded
from entropy_rl.yaml_text import AmbiguousError, dump_yaml, has_comment, load_yaml, yaml_problem

Config = TypeVar("Config")

_PRINT = "--print_config"


def parse_config(
    cls: type[Config],
    verb: str,
    arguments: Sequence[str],
    check: Callable[[Config], object] | None = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
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
      overrides: Dotted path -> value, applied after the command line. The values are those of a
        config, and no text that is parsed.

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
    files, settings = _split_arguments(cls, others)
    settings += [_override(cls, path, value) for path, value in overrides.items()]
    given = _put_all(cls, files, settings)
    if _PRINT in arguments:
        print(dump_yaml(_without(_filled(cls, given), unused_fields(cls))), end="", flush=True)
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


def check_built(cls: type[Config], who: str, config: object) -> Config:
    """Check a config that was built in Python as one that is read from a file.

    Args:
      cls: Its class.
      who: The function that takes it, for the error.
      config: The config.

    Returns:
      The config of plain values.

    Raises:
      ValueError: It is none of this class, or a value is none that a file can have.
    """
    if not isinstance(config, cls):
        raise ValueError(
            f"{who}: config: must be a {cls.__name__}, as of load_config, got {shown(config)}"
        )
    given = {}
    for name, value in _without(plain_value(config, ""), unused_fields(cls)).items():
        given[name] = _check(cls, [name], type_at(cls, name, [name]), value, name)
    return _build(type(config), given)


def recipe_arguments(cls: type, config: str, overrides: Mapping[str, Any]) -> list[str]:
    """Return the command line, after its verb, that gives a config file with overrides.

    Args:
      cls: The config class.
      config: The file.
      overrides: Dotted path -> value.

    Raises:
      ValueError: The file cannot be read, or a path or a value is wrong.
    """
    settings = [_override(cls, path, value) for path, value in overrides.items()]
    given = _put_all(cls, [config], settings)
    names, options = _names_of(settings), []
    for setting in settings:
        text = _written(cls, given, names, setting)
        # Only behind an equals sign, a value may begin like an option.
        is_option = text.startswith("--")
        options += [f"{setting.where}={text}"] if is_option else [setting.where, text]
    return ["--config", config, *options]


def _override(cls: type, path: str, value: Any) -> _Setting:
    """Return the setting of an override; a path that ends in + adds to a list."""
    names = path.removesuffix("+").split(".")
    type_at(cls, f"--{path}", names)
    return _Setting(f"--{path}", names, value, appends=path.endswith("+"), is_value=True)


def _written(
    cls: type, given: Mapping[str, Any], names: Mapping[tuple[str, ...], Any], setting: _Setting
) -> str:
    """Return the text of a value that the command line reads as that value."""
    for text in [setting.value] * isinstance(setting.value, str) + [json.dumps(setting.value)]:
        as_text = setting._replace(value=text, is_value=False)
        with contextlib.suppress(ValueError):  # no YAML
            if _read_setting(cls, given, names, as_text) == setting.value:
                return text
    is_text = isinstance(setting.value, str)
    must_be = "another text, as the command line reads it as null" if is_text else "a string"
    raise ValueError(f"{setting.where}: must be {must_be}, got {shown(setting.value)}")


# --------------------------------------------------------------------------------------------------
# Reading: files, then options
# --------------------------------------------------------------------------------------------------


class _Setting(NamedTuple):
    """A setting of the command line.

    Attributes:
      where: The option, or the field of a positional argument, for errors.
      path: The names of the dotted path.
      value: The text, or the value itself.
      appends: Whether the value is added to a list.
      is_value: Whether it is the value itself, and no YAML of it.
    """

    where: str
    path: list[str]
    value: Any
    appends: bool = False
    is_value: bool = False


def _put_all(cls: type, files: Sequence[str], settings: Sequence[_Setting]) -> dict[str, Any]:
    """Return the values of files with those of settings, checked."""
    given: dict[str, Any] = {}
    for file in files:
        for field, content in _read_file(cls, find_config(file)).items():
            put(cls, given, [field], content, "--config")
    names = _names_of(settings)
    for setting in settings:
        path, where = setting.path, setting.where
        plain = _read_setting(cls, given, names, setting)
        if setting.appends:
            there = value_at(_filled(cls, given), path)
            there = there if isinstance(there, list) else []
            plain = there + (plain if isinstance(plain, list) else [plain])
        put(cls, given, path, _check(cls, path, type_at(cls, where, path), plain, where), where)
    return given


def _names_of(settings: Sequence[_Setting]) -> dict[tuple[str, ...], Any]:
    """Return the names that settings give: they say which arguments are texts, in any order."""
    return {tuple(s.path[:-1]): s.value for s in settings if s.path[-1] == "name"}


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
            settings.append(_Setting(field, path, argument, appends=is_list, is_value=True))
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


def _read_setting(
    cls: type, given: Mapping[str, Any], names: Mapping[tuple[str, ...], Any], setting: _Setting
) -> Any:
    """Return the value of a setting.

    A text is taken as it is if it is the value of a text field, or of an argument that is annotated
    as one by what its entry names; else it is YAML.

    Args:
      cls: The config class.
      given: What is given before.
      names: Path of an entry -> the name that a setting gives it.
      setting: The setting.
    """
    if setting.is_value:
        return setting.value
    hint = type_at(cls, setting.where, setting.path)
    if hint is Any:
        hint = argument_type(given, names, setting.path)
    items = item_type(hint) if setting.appends else None
    if items is not None and not setting.value.startswith("["):
        hint = items
    return _read_value(setting.where, setting.value, hint)


def _read_file(cls: type, file: Path) -> dict[str, Any]:
    try:
        if not file.is_dir():  # which is said in other words below
            require_file(file)
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        if isinstance(error, FileNotFoundError):
            reason = os.strerror(errno.ENOENT)
        raise ValueError(f"--config: cannot read {str(file)!r}: {reason}") from error
    except ValueError as error:
        raise ValueError(f"--config: {error}") from None
    try:
        content = load_yaml(text, recorded=is_recorded(file))
    except (yaml.YAMLError, RecursionError) as error:
        where, problem = yaml_problem(error)
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
    """Parse a value of the command line as YAML, unless it is a text.

    It is one if its type is, or may be one and no YAML of another of its types, or if the type is
    not known and a part of the value would be ignored.
    """
    try:
        plain, problem = load_yaml(value), "a comment" if has_comment(value) else None
    except (yaml.YAMLError, RecursionError) as error:
        plain, problem = None, getattr(error, "problem", None) or getattr(error, "reason", None)
        problem = problem or error_text(error)
        if isinstance(error, AmbiguousError) and not _takes_text(hint):
            raise ValueError(f"{option}: {problem}") from error
    if _takes_text(hint):
        is_other = _is_of(plain, hint) and (plain is not None or value == "null")
        return plain if is_other and not problem else value
    # YAML cannot read the prompt "{problem} Put the answer in \\boxed{}.", and reads "Q: {problem}"
    # as a mapping.
    if hint is Any and (problem or _has_placeholder(plain)):
        return value
    if problem:
        raise ValueError(f"{option}: must be valid YAML ({problem}), got {shown(value)}")
    return plain


def _kinds(hint: Any) -> set[Any]:
    """Return the types of a union, or the one type, without their arguments."""
    return {typing.get_origin(option) or option for option in options_of(hint)}


def _takes_text(hint: Any) -> bool:
    return str in _kinds(hint)


def _is_of(plain: Any, hint: Any) -> bool:
    """Whether a value other than a text is of a type."""
    kinds = _kinds(hint) - {str}
    return type(plain) in kinds or (type(plain) is int and float in kinds)


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


def _without(config: Mapping[str, Any], paths: Sequence[str], above: str = "") -> dict[str, Any]:
    """Return a nested config without the fields at some dotted paths."""
    return {
        name: _without(value, paths, f"{above}{name}.") if isinstance(value, Mapping) else value
        for name, value in config.items()
        if f"{above}{name}" not in paths
    }


def _build(cls: type[Config], given: Mapping[str, Any]) -> Config:
    """Build the dataclass from checked values, which runs its own checks."""
    hints, values = typing.get_type_hints(cls), dict(given)
    for field in dataclasses.fields(cls):
        section, value = section_of(hints[field.name]), given.get(field.name)
        if section is not None and (value is not None or not has_default(field)):
            values[field.name] = _build(section, value or {})
    return cls(**values)
