"""Build objects from the names and values of a config: look-up, imports, checked calls.

Every error is one line that begins with the dotted path of the value that is wrong.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from entropy_rl.config.checks import at_place
from entropy_rl.config.values import check_value, options_of, unknown

Kind = TypeVar("Kind")


def import_object(path: str, reference: str) -> Any:
    """Import `module:attribute`.

    Args:
      path: Dotted path of the config field, for the error.
      reference: The reference.

    Raises:
      ValueError: If the module or the attribute does not exist, or the module exits.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except SystemExit as error:  # of a script without `if __name__ == "__main__"`
        raise ValueError(
            f"{path}: cannot import {reference!r}: the module calls sys.exit({error.code!r})"
        ) from error
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot import {reference!r}: {error}") from error


def require_module(path: str, reference: str) -> None:
    """Check that worker processes can import what a reference names.

    Raises:
      ValueError: It is in `__main__`, which is another module in another process.
    """
    if reference.startswith("__main__:"):
        raise ValueError(f"{path}: must be in a module of its own file, got {reference!r}")


def call_factory(factory: Callable[..., Any], arguments: Mapping[str, Any], path: str) -> Any:
    """Call a factory with arguments from a config, after checking their names and types.

    Args:
      factory: A function or class. Its signature says which arguments it has, and its plain
        annotations say what they may be; a number in a string becomes a float where one is wanted.
      arguments: Keyword arguments.
      path: Dotted path of the arguments.

    Returns:
      What the factory returns.

    Raises:
      ValueError: An argument is unknown, missing or of a wrong type. What the factory itself raises
        is passed on.
    """
    return factory(**_checked_arguments(factory, arguments, path))


def _checked_arguments(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    path: str,
    skip: Collection[str] = (),
) -> dict[str, Any]:
    """Arguments that a function accepts by keyword, beside the parameters in `skip`."""
    if not callable(function):
        raise ValueError(f"{path}: must be arguments of a function or class, got {function!r:.80}")
    parameters = [p for p in _parameters(function, path) if p.name not in skip]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters)
    names = [p.name for p in named]
    for name in arguments:
        if name not in names and not open_ended:
            raise ValueError(unknown(f"{path}.{name}", name, names))
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise ValueError(f"{path}.{parameter.name}: must be given")
    hints = type_hints(function)
    return {n: check_value(value, hints.get(n), f"{path}.{n}") for n, value in arguments.items()}


def _parameters(function: Callable[..., Any], path: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError) as error:  # some functions written in C have no signature
        raise ValueError(f"{path}: cannot read the arguments of {function!r:.80}") from error


# Where a name of a config is looked up, in this order. They are imported by name, when a config is
# read: they themselves import this module, and no core package may import contrib.
NAMESPACES = (
    "entropy_rl.advantages",
    "entropy_rl.losses",
    "entropy_rl.rewards",
    "entropy_rl.curricula",
    "entropy_rl.contrib",
)


def factories_of(kind: type, given: Iterable[str] = ()) -> dict[str, Callable[..., Any]]:
    """The methods of one kind that a config can name.

    A factory is a public function (in `__all__`) of `entropy_rl.advantages`, `entropy_rl.losses`,
    `entropy_rl.rewards`, `entropy_rl.curricula` or `entropy_rl.contrib` whose return annotation is
    `kind`, and whose required arguments a config can hold or the run gives. To add a method, write
    such a function and its import line.

    Args:
      kind: The class of what the factories return, such as `Transform`.
      given: Names of arguments that the run gives.

    Returns:
      The factories by name; of two with the same name the one of the first namespace.
    """
    found: dict[str, Callable[..., Any]] = {}
    for name, function in _public_functions():
        if type_hints(function).get("return") is kind and _takes_plain(function, set(given)):
            found.setdefault(name, function)
    return found


def _public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for namespace in NAMESPACES:
        module = importlib.import_module(namespace)
        for name in module.__all__:
            if inspect.isfunction(function := getattr(module, name)):
                yield name, function


def _takes_plain(function: Callable[..., Any], given: set[str]) -> bool:
    """Whether a config can call a function; it cannot call `chain` or `build_advantage`."""
    hints = type_hints(function)
    return all(
        p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and (p.default is not p.empty or p.name in given or _is_plain(hints.get(p.name)))
        for p in inspect.signature(function).parameters.values()
    )


def _is_plain(hint: Any) -> bool:
    return all(
        option in (int, float, bool, str, type(None))
        or typing.get_origin(option) in (Literal, list, dict)
        for option in options_of(hint)
    )


def plain_function(value: Any, kind: type, who: str) -> Callable[..., Any]:
    """Return a plain function that is given in the place of an object of a kind.

    Args:
      value: The function.
      kind: The kind, such as `Transform`.
      who: What takes it, for errors.

    Raises:
      TypeError: It cannot be called, or is a factory: a class, or a function whose return
        annotation is the kind.
    """
    is_factory = inspect.isclass(value) or type_hints(value).get("return") is kind
    if not callable(value) or is_factory:
        got = f"the factory {value.__name__}; call it" if is_factory else repr(value)
        raise TypeError(
            f"{who} must be a {kind.__name__} or a function (advantages, stats) -> ..., got {got}"
        )
    return value


def public_list(names: Mapping[str, Any]) -> list[str]:
    """`__all__` of a package that consists of import lines: all functions and classes in it.

    Args:
      names: `globals()` of the package.
    """
    return [name for name, value in names.items() if callable(value) and not name.startswith("_")]


def build_named(
    spec: Any,
    path: str,
    kind: type[Kind],
    *,
    returns: str,
    wrap: Callable[[Callable[..., Any]], Kind] | None = None,
    reserved: Collection[str] = (),
    given: Mapping[str, tuple[Any, str]] = types.MappingProxyType({}),
    inputs: Collection[str] = (),
) -> Kind:
    """Build what an entry {name: ..., arguments} of a config names.

    The name is that of a factory of the library (see `factories_of`), or `module:attribute` for
    something of the user's, which is imported and is one of the following:

    - an object of the kind asked for, taken as it is;
    - a factory: it is called with the arguments, and returns such an object or a plain function;
    - a plain function (advantages, stats) -> ..., where `wrap` is given. Arguments of the entry are
      passed to it by keyword in each call.

    With `inputs`, a callable is a plain function, and not a factory, if a parameter has one of
    these names. Otherwise it is one if its first two parameters are required and named `advantages`
    and `stats`, or if they are the only required positional parameters that neither the entry nor
    the run gives. A class is a factory, and so is a function whose return annotation is the kind.

    Args:
      spec: The entry.
      path: Dotted path of the entry.
      kind: The class to build.
      returns: A description of what is built, for errors.
      wrap: Makes an object of the kind from a plain function; None where a plain function has no
        meaning.
      reserved: Fields of the entry that are not passed on; what is named must have no parameters of
        these names.
      given: Arguments that the run itself decides, each with the dotted path of its origin: passed
        to what has an argument of that name.
      inputs: Names of the parameters of a plain function that are passed by name in each call.

    Returns:
      An object of the kind.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"{path}: must be a mapping {{name: ..., arguments}}, got {spec!r}")
    factories = factories_of(kind, given)
    names = (*factories, "module:function")
    if "name" not in spec:
        raise ValueError(f"{path}.name: must be given, one of: {', '.join(names)}")
    name = spec["name"]
    if isinstance(name, str) and ":" in name:
        found = import_object(f"{path}.name", name)
    elif isinstance(name, str) and name in factories:
        found = factories[name]
    else:
        _refuse_other_kind(f"{path}.name", name, returns)
        raise ValueError(unknown(f"{path}.name", name, names))
    arguments = {key: value for key, value in spec.items() if key != "name"}
    if isinstance(found, kind):
        if arguments:
            raise ValueError(
                f"{path}: must have no arguments, as {name!r} is a {kind.__name__} and no factory; "
                f"got {', '.join(arguments)}"
            )
        return found
    if not callable(found):
        raise ValueError(f"{path}.name: must be {returns}, or its factory, got {found!r} ({name})")
    parameters = {p.name for p in _parameters(found, path)}
    if taken := parameters & set(reserved):
        raise ValueError(
            f"{path}.name: must have no parameter {', '.join(sorted(taken))}, which is a field of "
            f"the entry itself, got {name}"
        )
    for key, (value, origin) in given.items():
        if key in parameters and arguments.setdefault(key, value) != value:
            shown = f" ({value})" if isinstance(value, int | float | str) else ""
            raise ValueError(
                f"{path}.{key}: must be that of {origin}{shown}, got {arguments[key]!r}; "
                "leave it out"
            )
    data = _data_parameters(found, kind, arguments, inputs, path) if wrap is not None else []
    if data:
        checked = _checked_arguments(found, arguments, path, skip=data)
        return wrap(functools.partial(found, **checked) if checked else found)
    if inputs and not inspect.isclass(found) and type_hints(found).get("return") is not kind:
        unknown_names = [p for p in _required(found, path) if p not in arguments]
        unknown_names += [
            f"**{p.name}" for p in _parameters(found, path) if p.kind is p.VAR_KEYWORD
        ]
        if unknown_names:  # with any keyword, it may be a function of the data or a factory
            parameters = ", ".join(unknown_names)
            raise ValueError(f"{path}.name: must be {returns}, got {name} of {parameters}")
    checked = _checked_arguments(found, arguments, path)
    with at_place(path):
        built = found(**checked)
    if isinstance(built, kind):
        return built
    if wrap is None or not callable(built):
        raise ValueError(f"{path}.name: must return {returns}, got {built!r} from {name}")
    return wrap(built)


def _data_parameters(
    found: Callable[..., Any],
    kind: type,
    arguments: Mapping[str, Any],
    inputs: Collection[str],
    path: str,
) -> list[str]:
    """Names of the parameters that take the data of each call; none for a factory."""
    if inspect.isclass(found) or type_hints(found).get("return") is kind:
        return []
    if inputs:
        return [p.name for p in _parameters(found, path) if p.name in inputs]
    required = _required(found, path)
    missing = [name for name in required if name not in arguments]
    is_plain = required[:2] == ["advantages", "stats"] or (
        len(missing) == 2 and missing == required[:2]
    )
    return required[:2] if is_plain else []


def _required(found: Callable[..., Any], path: str) -> list[str]:
    """Names of the positional parameters without a default."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        p.name for p in _parameters(found, path) if p.kind in positional and p.default is p.empty
    ]


def _refuse_other_kind(path: str, name: object, returns: str) -> None:
    """Raise for a name of the library that is not of the kind asked for."""
    for other, function in _public_functions():
        if other == name and inspect.isclass(kind := type_hints(function).get("return")):
            raise ValueError(
                f"{path}: must be {returns}, got {name!r}, which makes a {kind.__name__}"
            )


def type_hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function, or of the constructor of a class."""
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError):  # somebody's annotations that cannot be read: nothing is checked
        return {}
