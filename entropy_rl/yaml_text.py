"""Read and write the YAML of configs: YAML 1.2, no key twice, errors with their line."""

from __future__ import annotations

import itertools
import re
from typing import Any, ClassVar

import yaml

from entropy_rl.config.checks import shown

_MOST_VALUES, _MOST_CHARACTERS, _DEEPEST = 200_000, 2**20, 100
_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS = "!ambiguous"
# The core schema of YAML 1.2.2 (10.3.2), and `<<`, which merges a mapping as in YAML 1.1. A date, a
# number with a colon and a binary number are texts.
_CORE = {
    f"{_TAG}null": "~|null|Null|NULL|",
    f"{_TAG}bool": "true|True|TRUE|false|False|FALSE",
    f"{_TAG}int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    f"{_TAG}float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    f"{_TAG}merge": "<<",
    # Texts of YAML 1.2 that YAML 1.1 reads as true, false or a number.
    _AMBIGUOUS: (
        "yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF"
        r"|[-+]?(?=[0-9_.]*_)[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"
    ),
}


class AmbiguousError(yaml.constructor.ConstructorError):
    """A plain scalar that is a text in YAML 1.2, and a truth value or a number in YAML 1.1."""


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
                problem=f"{value} is not a valid {node.tag.rpartition(':')[2]}",
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


class _CoreLoader(_Loader):
    """Read plain scalars by the core schema of YAML 1.2, where PyYAML knows YAML 1.1 only."""

    yaml_implicit_resolvers: ClassVar[dict[str | None, list[Any]]] = {}

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """JSON, which is YAML 1.2, writes a character above U+FFFF as two surrogates."""
        text = self.construct_scalar(node)
        return text.encode("utf-16", "surrogatepass").decode("utf-16")

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)

    def refuse(self, node: yaml.ScalarNode) -> None:
        is_number = node.value[-1].isdigit() or node.value[-1] in "._"
        instead = "without underscores" if is_number else "true or false"
        raise AmbiguousError(
            problem=f"{node.value} must be {instead}, or in quotes if it is a text",
            problem_mark=node.start_mark,
        )


_CoreLoader.add_constructor(f"{_TAG}str", _CoreLoader.construct_text)
_CoreLoader.add_constructor(f"{_TAG}int", _CoreLoader.construct_int)
_CoreLoader.add_constructor(_AMBIGUOUS, _CoreLoader.refuse)


class _Dumper(yaml.SafeDumper):
    """Quote a text that is something else in YAML 1.1 or in YAML 1.2."""


for _tag, _pattern in _CORE.items():
    for _class in (_CoreLoader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)


def load_yaml(text: str, *, recorded: bool = False) -> Any:
    """Load YAML whose aliases, written out, make no more than a config can have.

    An alias can stand inside its own anchor, or a few lines for 10^9 values.

    Args:
      text: The YAML.
      recorded: Whether a run has written it. Earlier versions wrote YAML 1.1, in which 1e-4 is a
        text; what `dump_yaml` writes is the same in both.
    """
    if len(text) > _MOST_CHARACTERS:  # a megabyte takes seconds
        raise yaml.YAMLError(f"more than {_MOST_CHARACTERS} characters")
    depth = itertools.accumulate({"[": 1, "{": 1, "]": -1, "}": -1}.get(c, 0) for c in text)
    if max(depth, default=0) > _DEEPEST:  # takes the square of it
        raise RecursionError
    content = yaml.load(text, _Loader if recorded else _CoreLoader)
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


def yaml_problem(error: Exception) -> tuple[str, str]:
    """Return where YAML is wrong, as `:LINE` or empty, and what is wrong, in one line.

    Args:
      error: What `load_yaml` raises: a YAMLError or a RecursionError.
    """
    if isinstance(error, RecursionError):
        return "", "it is nested too deeply"
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", error)
    return f":{mark.line + 1}" if mark else "", str(problem)


def dump_yaml(plain: Any, *, allow_unicode: bool = False) -> str:
    """Write plain values as YAML that reads the same in YAML 1.1 and 1.2, keys in their order."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode)


def has_comment(text: str) -> bool:
    """Whether YAML ignores a part of a text: `#` after a space, outside of quotes."""
    end = 0
    for token in yaml.scan(text):
        if "#" in text[end : token.start_mark.index]:
            return True
        end = max(end, token.end_mark.index)
    return "#" in text[end:]
