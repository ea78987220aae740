"""Shell completion of verbs, options and their values by argcomplete, an optional package."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from entropy_rl.cli.help import positional_fields
from entropy_rl.config.recipes import recipe_names
from entropy_rl.config.registry import import_object
from entropy_rl.config.values import leaf_fields, option_of, options_of


def complete(verbs: Mapping[str, str]) -> None:
    """Answer a request of the shell, and exit.

    Args:
      verbs: Verb -> its config class, as `module:class`.
    """
    import argcomplete

    argcomplete.autocomplete(completion_parser(verbs), always_complete_options="long")


def completion_parser(verbs: Mapping[str, str]) -> argparse.ArgumentParser:
    """A parser that knows what may be written, and is never used to parse.

    Args:
      verbs: As in `complete`; those of two words belong to a group.
    """
    parser = argparse.ArgumentParser("entropy-rl", add_help=False)
    tops = parser.add_subparsers()
    groups: dict[str, Any] = {}
    for verb, config in verbs.items():
        first, _, second = verb.partition(" ")
        if second and first not in groups:
            groups[first] = tops.add_parser(first, add_help=False).add_subparsers()
        add = groups[first] if second else tops
        _add_options(add.add_parser(second or first, add_help=False), import_object(verb, config))
    return parser


def _add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    for place in positional_fields(cls):
        parser.add_argument(place.replace(".", "_"), nargs="*")
    parser.add_argument("--config").completer = _recipes_and_files  # type: ignore[attr-defined]
    for flag in ("--print_config", "--help"):
        parser.add_argument(flag, action="store_true")
    for path, hint in leaf_fields(cls):
        parser.add_argument(f"--{path}", choices=_choices(hint))


def _choices(hint: Any) -> list[str] | None:
    if bool in options_of(hint):
        return ["true", "false"]
    literal = option_of(hint, typing.Literal)
    return [str(value) for value in typing.get_args(literal)] or None


def _recipes_and_files(prefix: str, **_: Any) -> Iterable[str]:
    from argcomplete.completers import FilesCompleter

    return [*recipe_names(), *FilesCompleter(["yaml", "yml"])(prefix)]
