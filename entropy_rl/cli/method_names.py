"""Names that a field of a config may hold, read from the source, so that help imports no jax."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from entropy_rl.config.registry import NAMESPACES

_ROOT = Path(__file__).parents[2]  # has the directory entropy_rl
_TYPES = {"int": int, "float": float, "bool": bool, "str": str}
_PLAIN = re.compile(r"int|float|bool|str|None|(Literal|list|dict)(\[.*\])?", re.S)


class _Kind(NamedTuple):
    """What a field names.

    Attributes:
      returns: The class of what a factory returns.
      given: Names of arguments that the run gives to a factory.
    """

    returns: str
    given: Collection[str] = ()


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "advantage": _Kind("Transform", ("group_size", "gamma", "reward_weights")),
        "loss": _Kind("PreferenceLoss"),  # of SFT; that of training is a section
        "loss.surrogate": _Kind("Surrogate"),
        "loss.token_weights": _Kind("TokenWeighting", ("surrogate",)),
        "loss.entropy_coef": _Kind("Controller"),
        "replay": _Kind("Replay", ("group_size",)),
        "rewards": _Kind("Reward", ("max_new_tokens",)),
        "curriculum": _Kind("Curriculum"),
    }
)


def method_names(field: str) -> list[str]:
    """Return the names of the library's methods that an entry of a field may have.

    Args:
      field: Dotted path of the field, such as `advantage` or `loss.surrogate`.

    Returns:
      The names of `config.registry.factories_of` in the order of the import lines; empty for a
      field without any.
    """
    kind = _KINDS.get(field)
    if kind is None:
        return []
    names: dict[str, None] = {}
    for name, function in _public_functions():
        if function.returns is not None and ast.unparse(function.returns) == kind.returns:
            required = _required(function.args)
            if all(arg.arg in kind.given or _is_plain(arg.annotation) for arg in required):
                names.setdefault(name)
    return list(names)


def argument_types(name: str) -> dict[str, Any]:
    """Return the types of the arguments of a method of the library; empty for another name."""
    function = next((found for known, found in _public_functions() if known == name), None)
    if function is None:
        return {}
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return {argument.arg: _type_of(argument.annotation) for argument in arguments}


def _type_of(annotation: ast.expr | None) -> Any:
    """Return the type of a plain annotation; `Any` for another one."""
    if isinstance(annotation, ast.BinOp):
        return _type_of(annotation.left) | _type_of(annotation.right)
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return None
    if isinstance(annotation, ast.Name):
        return _TYPES.get(annotation.id, Any)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        inner = annotation.slice
        if annotation.value.id == "Literal":
            return Literal[ast.literal_eval(inner)]
        if annotation.value.id == "list":
            return list[_type_of(inner)]
        if annotation.value.id == "dict" and isinstance(inner, ast.Tuple):
            return dict[tuple(_type_of(each) for each in inner.elts)]
    return Any


def _public_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for namespace in NAMESPACES:
        for node in _parsed(_ROOT / namespace.replace(".", "/") / "__init__.py").body:
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            file = _ROOT / f"{node.module.replace('.', '/')}.py"
            names = [alias.name for alias in node.names if alias.name == alias.asname]
            if not names or not file.is_file():
                continue
            functions = {
                function.name: function
                for function in _parsed(file).body
                if isinstance(function, ast.FunctionDef)
            }
            yield from ((name, functions[name]) for name in names if name in functions)


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _required(arguments: ast.arguments) -> list[ast.arg]:
    """Return the arguments without a default; those behind a star are never plain."""
    positional = [*arguments.posonlyargs, *arguments.args]
    required = positional[: len(positional) - len(arguments.defaults)]
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required += [argument for argument, default in named if default is None]
    stars = (arguments.vararg, arguments.kwarg)
    return required + [ast.arg(star.arg) for star in stars if star is not None]


def _is_plain(annotation: ast.expr | None) -> bool:
    """Whether values of a type can be in a config."""
    if isinstance(annotation, ast.BinOp):
        return _is_plain(annotation.left) and _is_plain(annotation.right)
    return annotation is not None and bool(_PLAIN.fullmatch(ast.unparse(annotation)))
