"""Help text of `entropy-rl VERB --help`, from the config dataclasses and their docstrings."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import docstring_parser

from entropy_rl.cli.method_names import method_names
from entropy_rl.config.recipes import recipe_names
from entropy_rl.config.values import default_of, has_default, options_of, section_of, unused_fields

_ABOUT = (
    "Settings are given in YAML files and on the command line, which overrides the files; among "
    "files, later ones override earlier ones. Settings without a default are required."
)
_INDENT = 26
_NARROW = 60  # columns; below, descriptions are indented less
_LONGEST_DEFAULT = 160  # characters
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
    width = max(20, shutil.get_terminal_size().columns)
    places = "".join(f"{place} " for place in positional_names(cls))
    about = f"{docstring_parser.parse(cls.__doc__).short_description} {_ABOUT}"
    lines = [
        *_wrapped(
            f"usage: entropy-rl {verb} {places}[--config FILE] [--dotted.path VALUE ...]", width
        ),
        "",
        *_wrapped(about, width),
        "",
        "Options:",
        *_entry(
            "--config FILE",
            f"A YAML file, or the name of a recipe: {', '.join(recipe_names())}.",
            width,
        ),
        *_entry("--FIELD+ VALUE", "Append to a list.", width),
        *_entry("--FIELD.INDEX VALUE", "Change an entry of a list; the first is 0.", width),
        *_entry(
            "--print_config",
            "Print all settings as YAML, check them, and exit; without other options, print a "
            "template.",
            width,
        ),
        *_entry("--help", "Print this, and exit.", width),
        "",
        "Settings:",
    ]
    return "\n".join([*lines, *_lines(cls, width)])


class Setting(NamedTuple):
    """A field of a config.

    Attributes:
      path: Dotted path.
      type: Its type, such as `INT` or `{true,false}`.
      document: What it does, with the names of methods that it may have.
      default: `Required.`, or the default.
    """

    path: str
    type: str
    document: str
    default: str


class Section(NamedTuple):
    """A dataclass of a config.

    Attributes:
      path: Dotted path; empty for the config itself.
      document: What it is for; empty for the config itself.
      settings: Its own fields.
    """

    path: str
    document: str
    settings: list[Setting]


def config_sections(cls: type) -> Iterator[Section]:
    """Return the sections of a config: its own fields, then those of its subsections.

    Args:
      cls: A config dataclass, whose docstrings describe its fields. Its class variable UNUSED has
        the dotted paths of those that it does not use, which are left out; DOCUMENTS has the
        descriptions of those that mean something else in it.
    """
    unused, documents = unused_fields(cls), own_documents(cls)
    for section in _sections(cls, "", ""):
        settings = [
            setting._replace(document=documents.get(setting.path, setting.document))
            for setting in section.settings
            if setting.path not in unused
        ]
        yield section._replace(settings=settings)


def own_documents(cls: type) -> Mapping[str, str]:
    """Return dotted path -> description of the fields that mean something else in a config."""
    return getattr(cls, "DOCUMENTS", {})


def _sections(cls: type, path: str, document: str) -> Iterator[Section]:
    hints, documents = typing.get_type_hints(cls), field_documents(cls)
    above = f"{path}." if path else ""
    sections = {name: section_of(hint) for name, hint in hints.items()}
    settings = [
        _setting(field, hints[field.name], f"{above}{field.name}", documents[field.name])
        for field in dataclasses.fields(cls)
        if sections[field.name] is None
    ]
    yield Section(path, document, settings)
    for name, section in sections.items():
        if section is not None:
            yield from _sections(section, f"{above}{name}", documents[name])


def _lines(cls: type, width: int) -> Iterator[str]:
    for section in config_sections(cls):
        if section.path:
            yield ""
            yield from _wrapped(f"{section.path}: {section.document}", width)
        for path, type_, document, default in section.settings:
            yield from _entry(f"--{path} {type_}", f"{document} {default}", width)


def positional_fields(cls: type) -> tuple[str, ...]:
    """Return the dotted paths of the positional fields of a config, in order."""
    return getattr(cls, "POSITIONAL", ())


def positional_names(cls: type) -> list[str]:
    """Return the names of the positional fields in the usage line."""
    return [field.removesuffix(".path").upper() for field in positional_fields(cls)]


def field_documents(cls: type) -> dict[str, str]:
    """Return the description of each field, from the docstrings of the class and its bases."""
    classes = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    params = [param for base in classes for param in docstring_parser.parse(base.__doc__).params]
    return {param.arg_name: " ".join(param.description.split()) for param in params}


def _setting(field: dataclasses.Field, hint: Any, path: str, document: str) -> Setting:
    options = [option for option in options_of(hint) if option is not type(None)]
    type_ = "|".join(map(_type_text, options))
    if names := method_names(path):
        document += f" Names: {', '.join(names)}, or your own as module:function."
    return Setting(path, type_, document, _default_text(field))


def _type_text(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"{{{','.join(typing.get_args(hint))}}}"
    return _TYPES[typing.get_origin(hint) or hint]


def _default_text(field: dataclasses.Field) -> str:
    if not has_default(field):
        return "Required."
    value = default_of(field)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > _LONGEST_DEFAULT and isinstance(value, list):
        return f"Default: a list of {len(value)}, which --print_config prints."
    return f"Default: {text}."


def _entry(option: str, text: str, width: int) -> list[str]:
    """Return the lines of an option, with its description beside or below it."""
    indent = _INDENT if width >= _NARROW else 6
    lines = _wrapped(text, width - indent)
    head = f"  {option}"
    if len(head) + 2 > indent:
        return [head, *(" " * indent + line for line in lines)]
    return [head.ljust(indent) + lines[0], *(" " * indent + line for line in lines[1:])]


def _wrapped(text: str, width: int) -> list[str]:
    # A regular expression or a path that is broken could not be copied.
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
