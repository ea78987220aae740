"""From a YAML file and dotted overrides to a checked config."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser

from entropy_rl.factories import unknown

Config = TypeVar("Config")


class _Parser(ArgumentParser):
    """Says what is wrong in one line, without a page of usage."""

    def error(self, message: str, *_: Any) -> typing.NoReturn:
        # jsonargparse spreads one statement over lines.
        raise ValueError(" ".join(line.strip() for line in str(message).splitlines()))


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
    parser = _Parser(prog=f"entropy-rl {verb}", description=cls.__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file; later arguments override it.")
    names = parser.add_class_arguments(cls, None)
    _check_arguments(cls, arguments)
    namespace = parser.instantiate(parser.parse_args(list(arguments)))
    return cls(**{name: namespace[name] for name in names})


def _check_arguments(cls: type, arguments: Sequence[str]) -> None:
    """Unknown names, on the command line and in the files it names; types are the parser's business."""
    for i, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        name, _, value = argument[2:].partition("=")
        if name == "config":
            file = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
            _check_file(cls, Path(file))
        elif name.split(".")[-1] not in ("help", "print_config"):
            _check_path(cls, f"--{name}", name.rstrip("+").split("."))


def _check_file(cls: type, file: Path) -> None:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ValueError(f"--config: cannot read {str(file)!r}: {reason}") from error
    except yaml.YAMLError as error:
        where = f":{error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise ValueError(f"{file}{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file}: expected a mapping of {', '.join(f.name for f in dataclasses.fields(cls))}"
        )
    _check_mapping(cls, content, str(file), ())


def _check_mapping(cls: type, content: dict[str, Any], file: str, above: tuple[str, ...]) -> None:
    for name, value in content.items():
        _check_path(cls, f"{file}: {'.'.join((*above, str(name)))}", [str(name)])
        inner = _section(cls, name)
        if inner is not None and isinstance(value, dict):
            _check_mapping(inner, value, file, (*above, name))


def _check_path(cls: type, where: str, path: Sequence[str]) -> None:
    allowed = [field.name for field in dataclasses.fields(cls)]
    if path[0] not in allowed:
        raise ValueError(unknown(where, path[0], allowed))
    inner = _section(cls, path[0])
    if inner is not None and len(path) > 1:
        _check_path(inner, where, path[1:])


def _section(cls: type, name: str) -> type | None:
    """The dataclass behind a field, if the field is a section (or null)."""
    hint = typing.get_type_hints(cls)[name]
    for option in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(option):
            return option
    return None
