"""From names and values in a config to objects: nearest matches, imports, checked calls.

Every error is one line that begins with the dotted path of what is wrong.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal


def unknown(path: str, name: object, allowed: Iterable[object]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    allowed = [str(option) for option in allowed]
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{path}: {name!r} is not allowed; {hint}allowed: {', '.join(allowed) or 'none'}"


def import_object(path: str, reference: str) -> Any:
    """Imports `module:attribute`.

    Args:
      path: Dotted path of the config field, for the error.
      reference: The reference.

    Raises:
      ValueError: If the module or the attribute does not exist.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot import {reference!r}: {error}") from error


def call_factory(factory: Callable[..., Any], arguments: Mapping[str, Any], path: str) -> Any:
    """Calls a factory with arguments from a config, after checking their names and types.

    Args:
      factory: A function or class. Its signature says which arguments there are, and its
        annotations, where they are plain, what they may be; a number in a string becomes a float
        where one is wanted.
      arguments: Keyword arguments.
      path: Dotted path of the arguments.

    Returns:
      What the factory returns.

    Raises:
      ValueError: An argument is unknown, missing or of a wrong type. What the factory itself raises
        is passed on.
    """
    if not callable(factory):
        raise ValueError(
            f"{path}: there are none for {factory!r:.80}, which is neither a function nor a class"
        )
    parameters = inspect.signature(factory).parameters
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    names = [p.name for p in named]
    for name in arguments:
        if name not in names and not open_ended:
            raise ValueError(unknown(f"{path}.{name}", name, names))
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise ValueError(f"{path}.{parameter.name}: missing; it must be given")
    hints = _type_hints(factory)
    return factory(
        **{n: check_value(value, hints.get(n), f"{path}.{n}") for n, value in arguments.items()}
    )


def build_named(
    spec: Any,
    path: str,
    factories: Mapping[str, Callable[..., Any]],
    *,
    returns: str,
    kind: type | None = None,
    given: Mapping[str, tuple[Any, str]] = types.MappingProxyType({}),
) -> Callable[..., Any]:
    """Builds what an entry {name: ..., arguments} of a config asks for.

    Args:
      spec: The entry. Its name is one of the factories, or `module:function` for a factory of the
        user's own, which is imported and called with the arguments.
      path: Dotted path of the entry.
      factories: The factories of the library, by name.
      returns: What a factory returns, for an error.
      kind: The class of what it returns; None for whatever can be called.
      given: Arguments that the run itself decides, each with the path of where: passed to a factory
        that has such an argument.

    Returns:
      What the factory returns.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    names = (*factories, "module:function")
    if not isinstance(spec, Mapping):
        raise ValueError(f"{path}: {spec!r} is no mapping; expected {{name: ..., arguments}}")
    if "name" not in spec:
        raise ValueError(f"{path}.name: missing; allowed: {', '.join(names)}")
    name = spec["name"]
    if isinstance(name, str) and name in factories:
        factory = factories[name]
    elif isinstance(name, str) and ":" in name:
        factory = import_object(f"{path}.name", name)
    else:
        raise ValueError(unknown(f"{path}.name", name, names))
    if not callable(factory):
        raise ValueError(
            f"{path}.name: {name!r} is {factory!r}; expected a function that returns {returns}"
        )
    arguments = {key: value for key, value in spec.items() if key != "name"}
    parameters = inspect.signature(factory).parameters
    for key, (value, origin) in given.items():
        if key in parameters and arguments.setdefault(key, value) != value:
            raise ValueError(
                f"{path}.{key}: {arguments[key]!r} differs from {origin}, which is {value}; leave "
                "it out"
            )
    try:
        built = call_factory(factory, arguments, path)
    except ValueError as error:
        raise ValueError(
            str(error) if str(error).startswith(path) else f"{path}: {error}"
        ) from error
    if not (callable(built) if kind is None else isinstance(built, kind)):
        raise ValueError(f"{path}.name: {name} returned {built!r}; expected {returns}")
    return built


def _type_hints(factory: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError):  # somebody's annotations that cannot be read: nothing is checked
        return {}


def check_value(value: Any, type_: Any, path: str) -> Any:
    """Checks a plain value, as YAML holds it, against an annotation.

    Args:
      value: The value.
      type_: The annotation. Of a union, the option for a mapping is for mappings, and the other one
        for anything else. What is not plain (a union of more, a class) is not checked.
      path: Where the value stands, for the error.

    Returns:
      The value, as a float where that is wanted.

    Raises:
      ValueError: If it is clearly not a `type_`.
    """
    origin, options = typing.get_origin(type_), typing.get_args(type_)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        options = [option for option in options if option is not type(None)]
        if len(options) > 1:
            options = [o for o in options if (o is mapping_of(type_)) == isinstance(value, Mapping)]
        return check_value(value, options[0], path) if len(options) == 1 else value
    if origin is Literal:
        if value not in options:
            raise ValueError(unknown(path, value, options))
        return value
    if origin is list and isinstance(value, list):
        return [check_value(item, options[0], f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {
            name: check_value(item, options[1], f"{path}.{name}") for name, item in value.items()
        }
    if type_ is float:
        return _as_float(value, path)
    kind = origin or type_
    # bool is a subclass of int, but `ddof: true` is a mistake
    if kind in _KINDS and (
        not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    ):
        raise ValueError(f"{path}: {value!r} is not allowed; expected {_KINDS[kind]}")
    return value


_KINDS = {
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


def _as_float(value: Any, path: str) -> float:
    # YAML 1.1 reads 1e-6, without a dot, as a string.
    try:
        if not isinstance(value, bool) and not math.isnan(number := float(value)):
            return number
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{path}: {value!r} is not allowed; expected a number")


def mapping_of(hint: Any) -> Any:
    """The option of a type that is for mappings; None if there is none."""
    return next((o for o in (hint, *typing.get_args(hint)) if typing.get_origin(o) is dict), None)


def section_of(hint: Any) -> type | None:
    """The dataclass behind a type, if it is that of a section (or null)."""
    for option in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(option):
            return option
    return None


def has_default(field: dataclasses.Field) -> bool:
    """True for a field that need not be given."""
    return not (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def default_of(field: dataclasses.Field) -> Any:
    """The value of a field that is not given."""
    return field.default_factory() if field.default is dataclasses.MISSING else field.default
