"""Load YAML of a user: no key twice, no expansion without end, errors with their line."""

from __future__ import annotations

import itertools
from typing import Any

import yaml

from entropy_rl.config.checks import shown

_MOST_VALUES, _MOST_CHARACTERS, _DEEPEST = 200_000, 2**20, 100


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


def load_yaml(text: str) -> Any:
    """Load YAML whose aliases, written out, make no more than a config can have.

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
