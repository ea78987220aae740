"""`build_advantage`: the `advantage` section of a config file becomes a chain."""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from entropy_rl.advantages.baselines import group_center, group_normalize, leave_one_out, whiten
from entropy_rl.advantages.shaping import shape_by_entropy
from entropy_rl.advantages.transform import Transform, chain

_FACTORIES: dict[str, Callable[..., Transform]] = {
    factory.__name__: factory
    for factory in (group_normalize, group_center, leave_one_out, whiten, shape_by_entropy)
}


def build_advantage(specs: Sequence[Mapping[str, Any]], group_size: int) -> Transform:
    """Chain the transforms that a config lists.

    Each entry is a mapping of `name` and the arguments of the factory of that name:

        advantage:
          - {name: group_normalize}
          - {name: shape_by_entropy, alpha: 0.4, kappa: 2.0}

    Args:
      specs: The entries in order. A name is one of the factories of this package, or `module:function`
        for a factory of your own, which is imported and called with the arguments; it returns a
        `Transform` or a function (advantages, stats) -> advantages.
      group_size: Completions per prompt of the rollout, given to each factory that has such an argument.

    Returns:
      The chain; the identity for an empty list.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    if isinstance(specs, str | Mapping) or not isinstance(specs, Sequence):
        raise ValueError(f"advantage: {specs!r} is no list; expected a list of {{name: ..., arguments}}")
    return chain(*(_build(spec, f"advantage[{i}]", group_size) for i, spec in enumerate(specs)))


def _build(spec: Mapping[str, Any], path: str, group_size: int) -> Callable[..., Any]:
    if not isinstance(spec, Mapping):
        raise ValueError(f"{path}: {spec!r} is no mapping; expected {{name: ..., arguments}}")
    if "name" not in spec:
        raise ValueError(f"{path}.name: missing; {_known_names()}")
    name = spec["name"]
    factory = _find_factory(name, f"{path}.name")
    arguments = {key: value for key, value in spec.items() if key != "name"}
    parameters = inspect.signature(factory).parameters

    if "group_size" in parameters and arguments.setdefault("group_size", group_size) != group_size:
        raise ValueError(
            f"{path}.group_size: {arguments['group_size']!r} differs from rollout.group_size, which is "
            f"{group_size}; leave it out"
        )
    _check_names(arguments, parameters, name, path)
    types_ = _types(factory)
    arguments = {key: _checked(value, types_.get(key), f"{path}.{key}") for key, value in arguments.items()}
    try:
        transform = factory(**arguments)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not callable(transform):
        raise ValueError(
            f"{path}.name: {name} returned {transform!r}; "
            "expected a Transform or a function (advantages, stats) -> advantages"
        )
    return transform


def _find_factory(name: Any, path: str) -> Callable[..., Any]:
    if isinstance(name, str) and name in _FACTORIES:
        return _FACTORIES[name]
    if not isinstance(name, str) or ":" not in name:
        raise ValueError(
            f"{path}: unknown transform {name!r}; {_did_you_mean(name, _FACTORIES)}{_known_names()}"
        )
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: cannot import {name!r}: {error}") from error
    if not callable(factory):
        raise ValueError(f"{path}: {name!r} is {factory!r}; expected a function that returns a transform")
    return factory


def _check_names(
    arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], name: str, path: str
) -> None:
    kinds = {parameter.kind for parameter in parameters.values()}
    named = {
        key: parameter
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for key in arguments:
        if key not in named and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(
                f"{path}.{key}: unknown argument of {name}; "
                f"{_did_you_mean(key, named)}allowed: {', '.join(named) or 'none'}"
            )
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ValueError(f"{path}.{key}: missing; {name} needs it")


def _types(factory: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(factory)
    except (NameError, TypeError):  # somebody's annotations that cannot be read: nothing is checked
        return {}


def _checked(value: Any, type_: Any, path: str) -> Any:
    """Return `value`, as a float where that is wanted, or raise if it is clearly not a `type_`."""
    origin, options = typing.get_origin(type_), typing.get_args(type_)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        options = tuple(option for option in options if option is not type(None))
        if len(options) != 1:
            return value
        return _checked(value, options[0], path)
    if origin is Literal:
        if value not in options:
            hint = _did_you_mean(value, options)
            raise ValueError(
                f"{path}: {value!r} is not allowed; {hint}allowed: {', '.join(map(str, options))}"
            )
        return value
    if type_ is float:
        return _as_float(value, path)
    # bool is a subclass of int, but `ddof: true` is a mistake
    if type_ in (int, bool, str) and type(value) is not type_:
        kind = {int: "a whole number", bool: "true or false", str: "a string"}[type_]
        raise ValueError(f"{path}: {value!r} is not allowed; expected {kind}")
    return value


def _as_float(value: Any, path: str) -> float:
    # YAML 1.1 reads 1e-6, without a dot, as a string.
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{path}: {value!r} is not allowed; expected a number")


def _did_you_mean(word: Any, known: typing.Iterable[Any]) -> str:
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _known_names() -> str:
    return f"allowed: {', '.join(_FACTORIES)}, or module:function for your own"
