"""`Tool`: a function that a model may call, with the schema that a chat template shows."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import docstring_parser

from entropy_rl.config.registry import type_hints
from entropy_rl.config.values import unknown
from entropy_rl.tasks.tools.calls import CallError, ToolCall

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
      name: Its name in a call.
      function: Takes the arguments by keyword, and returns the result, which is shown as text.
      description: What it does.
      parameters: JSON schemas of the arguments, by name; all of them are plain types.
      required: Names of the arguments without a default.
      takes_seed: Whether the function also takes `seed`, that of the episode.
      seconds: How long a call may take, where the function has a limit of its own.
    """

    name: str
    function: Callable[..., Any]
    description: str
    parameters: Mapping[str, Mapping[str, str]]
    required: tuple[str, ...]
    takes_seed: bool = False
    seconds: float = 0.0

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as chat templates take it, in the form of OpenAI's API."""
        parameters = {
            "type": "object",
            "properties": {name: dict(schema) for name, schema in self.parameters.items()},
            "required": list(self.required),
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def call(self, arguments: Mapping[str, Any], seed: int) -> str:
        """Call the function.

        Args:
          arguments: Those that the model gives.
          seed: Of the episode.

        Raises:
          CallError: Arguments are unknown, missing or of a wrong type, or the function raises an
            exception.
        """
        for name, value in arguments.items():
            if name not in self.parameters:
                raise CallError(unknown(f"{self.name}.{name}", name, self.parameters))
            kind = self.parameters[name]["type"]
            if not _is_a(value, kind):
                raise CallError(f"{self.name}.{name}: must be of type {kind}")
        for name in self.required:
            if name not in arguments:
                raise CallError(f"{self.name}.{name}: must be given")
        try:
            more = {"seed": seed} if self.takes_seed else {}
            return str(self.function(**arguments, **more))
        except (MemoryError, CallError):
            raise
        except Exception as error:
            raise CallError(f"{type(error).__name__}: {error}") from error


def call_tool(tools: Mapping[str, Tool], call: ToolCall | CallError, seed: int) -> str:
    """Make a call.

    Args:
      tools: The tools by name.
      call: The call, or the error in its place.
      seed: Of the episode.

    Raises:
      CallError: It cannot be read, names no tool, or fails.
    """
    if isinstance(call, CallError):
        raise call
    if call.name not in tools:
        raise CallError(unknown("name", call.name, tools))
    return tools[call.name].call(call.arguments, seed)


def tool_of(function: Callable[..., Any], path: str) -> Tool:
    """Describe a function by its signature and docstring.

    Args:
      function: Its parameters are annotated with str, int, float or bool; its docstring says what
        it does, and describes the parameters in the section Args. An object with such a `__call__`
        or a `functools.partial` is one too, whose fixed arguments the model does not see.
      path: Dotted path of its name in the config, for errors.

    Raises:
      ValueError: There is no docstring, a parameter has no such annotation, or a call gives no
        result but a coroutine or a generator.
    """
    whole, fixed = function, set()
    while isinstance(whole, functools.partial):
        whole, fixed = whole.func, fixed | set(whole.keywords)
    name = getattr(whole, "__name__", type(whole).__name__)
    call = whole if inspect.isroutine(whole) else type(whole).__call__
    doc = docstring_parser.parse(inspect.getdoc(whole) or "")
    if not callable(whole) or inspect.isclass(whole) or not doc.short_description:
        raise ValueError(f"{path}: must be a function with a docstring, got {name}")
    if (
        inspect.iscoroutinefunction(call)
        or inspect.isgeneratorfunction(call)
        or (inspect.isasyncgenfunction(call))
    ):
        raise ValueError(
            f"{path}: must be a function that returns its result, got {name}, which is async or a "
            "generator"
        )
    hints, about = type_hints(call), {p.arg_name: p.description or "" for p in doc.params}
    parameters, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in fixed:
            continue
        if hints.get(parameter.name) not in _JSON_TYPES or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
            parameter.POSITIONAL_ONLY,
        ):
            raise ValueError(
                f"{path}: must have parameters of type str, int, float or bool, got "
                f"{parameter} of {name}"
            )
        parameters[parameter.name] = {
            "type": _JSON_TYPES[hints[parameter.name]],
            "description": about.get(parameter.name, ""),
        }
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return Tool(name, function, doc.short_description, parameters, tuple(required))


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    types = {"string": str, "integer": int, "number": int | float, "boolean": bool}
    return isinstance(value, types[kind])
