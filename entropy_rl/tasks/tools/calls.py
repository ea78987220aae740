"""Tool calls in the text of a turn, in the formats of Qwen's and Llama's chat templates."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

_OPEN, _CLOSE, _END_OF_THINKING = "<tool_call>", "</tool_call>", "</think>"


class ToolCall(NamedTuple):
    """A call: the name of a tool, and its arguments by name."""

    name: str
    arguments: dict[str, Any]


class CallError(ValueError):
    """A call that cannot be read or made; the message is for the model."""


def parse_calls(text: str) -> list[ToolCall | CallError]:
    """Read the tool calls of a turn.

    Calls are `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them, as
    Qwen's and Hermes' templates show them; or the whole turn is `{"name": ..., "parameters":
    {...}}`, as in Llama's. What comes before `</think>` is reasoning and calls nothing.

    Args:
      text: The turn, without special tokens.

    Returns:
      The calls in order, with an error in the place of each that cannot be read; empty for a turn
      that calls no tool.
    """
    text = text.rpartition(_END_OF_THINKING)[2].strip()
    bodies = text.split(_OPEN)[1:]
    if not bodies:
        is_bare = text.startswith("{") and '"name"' in text
        return [_attempt(text)] if is_bare else []
    calls: list[ToolCall | CallError] = []
    for body in bodies:
        inside, close, _ = body.partition(_CLOSE)
        calls.append(_attempt(inside) if close else CallError(f"a call must end with {_CLOSE}"))
    return calls


def _attempt(text: str) -> ToolCall | CallError:
    try:
        return _parse(text)
    except CallError as error:
        return error


def _parse(text: str) -> ToolCall:
    call = _read(text, "a call")
    name = call.get("name")
    if not isinstance(name, str):
        raise CallError('a call must have a "name"')
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # as in OpenAI's messages
        arguments = _read(arguments, "the arguments")
    if not isinstance(arguments, dict):
        raise CallError("the arguments must be a JSON object")
    return ToolCall(name, arguments)


def _read(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text, strict=False)  # line breaks in texts, such as code, are frequent
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
        raise CallError(f"{what} must be a JSON object, got {reason}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, a deep nest
        raise CallError(f"{what} must be a JSON object that can be read") from None
    if not isinstance(value, dict):
        raise CallError(f"{what} must be a JSON object")
    return value
