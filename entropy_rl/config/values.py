"""Checks of plain config values against type annotations, and of names against known ones."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from entropy_rl.config.checks import check_number, check_numbers, require, shown
from entropy_rl.config.renames import refusal


def unknown(
    path: str, name: object, allowed: Iterable[object], suggested: str | None = None
) -> str:
    """Return the error text for an unknown name, with the nearest known one.

    Args:
      path: Dotted path of the name.
      name: The unknown name.
      allowed: The known names.
      suggested: What the name probably means; None for the known name with the nearest spelling.
    """
    allowed = [str(option) for option in allowed]
    if renamed := refusal(path, name, allowed):
        return renamed
    longer = [option for option in allowed if option.startswith(f"{name}-")]  # a100 for a100-40
    near = [suggested] if suggested else longer[:1]
    near = near or difflib.get_close_matches(str(name)[:100], allowed, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    one_of = "one of " if len(allowed) > 1 else ""
    return f"{path}: must be {one_of}{', '.join(allowed) or 'absent'}, got {shown(name)}{hint}"


def check_value(value: Any, type_: Any, path: str) -> Any:
    """Check a plain value, as in YAML, against an annotation, and the range of its numbers.

    Args:
      value: The value.
      type_: The annotation. Of a union with a mapping type, that option is for mappings and the
        other for all other values. Other annotations (larger unions, classes) are not checked.
      path: Dotted path of the value, for the error.

    Returns:
      The value, converted to float for a float annotation.

    Raises:
      ValueError: If it is not a `type_`, or a number is out of the range of its type.
    """
    check_numbers(value, path, own=False)
    return _check_type(value, type_, path)


def _check_type(value: Any, type_: Any, path: str) -> Any:
    origin, options = typing.get_origin(type_), typing.get_args(type_)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        options = [option for option in options if option is not type(None)]
        if len(options) > 1:
            mapping, is_mapping = option_of(type_, dict), isinstance(value, Mapping)
            options = [option for option in options if (option is mapping) == is_mapping]
        return _check_type(value, options[0], path) if len(options) == 1 else value
    if origin is Literal:
        if value not in options:
            raise ValueError(unknown(path, value, options))
        return value
    if origin is list and isinstance(value, list):
        return [_check_type(item, options[0], f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {
            name: _check_type(item, options[1], f"{path}.{name}") for name, item in value.items()
        }
    if type_ is float:
        return _as_float(value, path)
    kind = origin or type_
    # bool is a subclass of int, but `ddof: true` is a mistake
    if kind in _KINDS and (
        not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    ):
        raise ValueError(f"{path}: must be {_KINDS[kind]}, got {shown(value)}")
    if kind is int:
        check_number(value, path)
    return value


_KINDS = {
    int: "an integer",
    bool: "true or false",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}


def _as_float(value: Any, path: str) -> float:
    # YAML 1.1 reads 1e-6, without a dot, as a string.
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is not None and not math.isnan(number):
        check_number(number, path)
        return number
    raise ValueError(f"{path}: must be a number, got {shown(value)}")


def plain_value(value: Any, path: str) -> Any:
    """Convert a value of a config that was built in Python to what a file has.

    Sections become mappings, tuples lists, numbers of NumPy and JAX those of Python, and paths
    texts.

    Args:
      value: The value.
      path: Its dotted path, for the error; empty for a whole config.

    Raises:
      ValueError: A value has no form in a file, such as an array or a function.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        above, names = f"{path}." if path else "", [f.name for f in dataclasses.fields(value)]
        return {name: plain_value(getattr(value, name), f"{above}{name}") for name in names}
    return _plain(value, path)


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner, f"{path}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{path}[{i}]") for i, inner in enumerate(value)]
    value = plain_scalar(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{path}: must be a value that a config file can have, got {shown(value)}")


def plain_scalar(value: Any) -> Any:
    """The Python number of a scalar of numpy or jax; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the options of a union, or the one type."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def option_of(hint: Any, kind: Any) -> Any:
    """Return the option of a type whose origin is `kind`, such as `list`; None if there is none."""
    return next((o for o in options_of(hint) if typing.get_origin(o) is kind), None)


def section_of(hint: Any) -> type | None:
    """Return the dataclass of a section or optional section; None for other types."""
    return next((option for option in options_of(hint) if dataclasses.is_dataclass(option)), None)


def leaf_fields(cls: type, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, type hint) of the fields of a config class, those of sections too.

    Args:
      cls: The class. Its class variable UNUSED, if any, has the dotted paths of fields that it
        shares with other classes and does not use; they are left out.
      above: Begins the paths.
    """
    hints, unused = typing.get_type_hints(cls), unused_fields(cls)
    for field in dataclasses.fields(cls):
        path, hint = f"{above}{field.name}", hints[field.name]
        section = section_of(hint)
        found = [(path, hint)] if section is None else leaf_fields(section, f"{path}.")
        yield from (leaf for leaf in found if leaf[0] not in unused)


def unused_fields(cls: type) -> tuple[str, ...]:
    """Return the dotted paths of fields that a config class must leave at their defaults."""
    return getattr(cls, "UNUSED", ())


def field_at(config: Any, path: str) -> Any:
    """Return the value at a dotted path; None without it, or below an absent section."""
    return functools.reduce(lambda part, name: getattr(part, name, None), path.split("."), config)


def has_default(field: dataclasses.Field) -> bool:
    """Whether a field has a default."""
    return not (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of a field."""
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


def refuse_unused(config: Any, section: str, why: str, *names: str) -> None:
    """Require that fields without an effect have their defaults.

    Args:
      config: A section.
      section: Its dotted path, which ends in a dot; empty for the whole config.
      why: Ends the error, such as "because SFT does not use it".
      *names: Dotted paths of the fields within the section. Those of an absent section are fine.
    """
    for name in names:
        above, _, last = name.rpartition(".")
        part = field_at(config, above) if above else config
        if part is not None:
            field = next(field for field in dataclasses.fields(part) if field.name == last)
            usual, value = default_of(field), getattr(part, last)
            require(value == usual, f"{section}{name}", value, f"{usual!r}, {why}")


def differences(theirs: Any, ours: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted path, their value, our value) where two nested plain values differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in [*theirs, *(n for n in ours if n not in theirs)]:
            inner = f"{path}.{name}" if path else name
            yield from differences(theirs.get(name), ours.get(name), inner)
    elif theirs != ours:
        yield path, theirs, ours
