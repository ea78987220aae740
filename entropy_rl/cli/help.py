"""Help text of `entropy-rl VERB --help`, from the config dataclasses and their docstrings."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
import types
import typing
from typing import Any

import docstring_parser

from entropy_rl.config.values import default_of, has_default, section_of

_ABOUT = (
    "Settings are given in YAML files, such as those in configs/, and on the command line; later "
    "ones override earlier ones. Settings without a default are required."
)
_INDENT = 26
_TYPES = {
    int: "INT",
    float: "NUMBER",
    str: "TEXT",
    bool: "{true,false}",
    list: "LIST",
    dict: "MAPPING",
}


def config_help(cls: type, verb: str) -> str:
    """Return the help text: every setting of a config with type, description and default."""
    width = min(110, shutil.get_terminal_size().columns)
    places = "".join(f"{place} " for place in positional_names(cls))
    lines = [
        f"usage: entropy-rl {verb} {places}[--config FILE] [--dotted.path VALUE ...]",
        "",
        *textwrap.wrap(f"{docstring_parser.parse(cls.__doc__).short_description} {_ABOUT}", width),
        "",
        *_entry("--config FILE", "A YAML file.", width),
        *_entry("--print_config", "Print all settings as YAML, and exit.", width),
        *_entry("--help", "Print this, and exit.", width),
        "",
    ]
    return "\n".join([*lines, *_fields(cls, "", width)])


def _fields(cls: type, above: str, width: int) -> list[str]:
    """Return the lines of a section's fields, then of its subsections."""
    hints, documents, lines = typing.get_type_hints(cls), _documents(cls), []
    sections = {name: section_of(hint) for name, hint in hints.items()}
    for field in dataclasses.fields(cls):
        name = field.name
        if sections[name] is None:
            lines += _field(field, hints[name], f"{above}{name}", documents[name], width)
    for name, section in sections.items():
        if section is not None:
            lines += ["", *textwrap.wrap(f"{above}{name}: {documents[name]}", width)]
            lines += _fields(section, f"{above}{name}.", width)
    return lines


def positional_fields(cls: type) -> tuple[str, ...]:
    """Return the dotted paths of the positional fields of a config, in order."""
    return getattr(cls, "POSITIONAL", ())


def positional_names(cls: type) -> list[str]:
    """Return the names of the positional fields in the usage line."""
    return [field.removesuffix(".path").upper() for field in positional_fields(cls)]


def _documents(cls: type) -> dict[str, str]:
    """Return the description of each field, from the docstrings of the class and its bases."""
    classes = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    params = [param for base in classes for param in docstring_parser.parse(base.__doc__).params]
    return {param.arg_name: " ".join(param.description.split()) for param in params}


def _field(field: dataclasses.Field, hint: Any, path: str, document: str, width: int) -> list[str]:
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        type_ = f"{{{','.join(options)}}}"
    else:
        inner = options if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]
        type_ = "|".join(_TYPES[typing.get_origin(option) or option] for option in inner)
    if has_default(field):
        value = default_of(field)
        document += f" Default: {value if isinstance(value, str) else json.dumps(value)}."
    return _entry(f"--{path} {type_}", document, width)


def _entry(option: str, text: str, width: int) -> list[str]:
    """Return the lines of an option, with its description beside or below it."""
    lines = textwrap.wrap(text, width - _INDENT)
    head = f"  {option}"
    if len(head) + 2 > _INDENT:
        return [head, *(" " * _INDENT + line for line in lines)]
    return [head.ljust(_INDENT) + lines[0], *(" " * _INDENT + line for line in lines[1:])]
