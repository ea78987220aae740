"""Prompts that are lists of chat messages, in the forms of verl, TRL and ShareGPT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Message = tuple[str, str]  # role, content

_ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    **{"human": "user", "gpt": "assistant"},  # ShareGPT
}
# What is read of a message.
_ROLE_AND_CONTENT = ("role", "content", "from", "value")
_TRAINED_ON = ("weight", "train")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")
# Such as [{"role": in JSON, or [{'content': in Python's notation.
_TEXT_OF_MESSAGES = re.compile(r"""\s*(array\()?\[\s*\{\s*(["'])(role|content|from|value)\2\s*:""")


def is_messages(value: Any) -> bool:
    """Whether a value is meant as a list of messages, rather than as a text."""
    if isinstance(value, dict):
        return isinstance(value.get("role"), list) and isinstance(value.get("content"), list)
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def refuse_text_of_messages(text: str, field: str) -> None:
    """Refuse messages that a CSV file or pandas has turned into a text: a prompt of raw JSON.

    Args:
      text: A text.
      field: Its name, for the error.

    Raises:
      ValueError: If it begins as a list of messages in JSON or Python.
    """
    if _TEXT_OF_MESSAGES.match(text):
        raise ValueError(
            f"{field!r}: must be a list of messages, decoded as by json.loads, got a text of "
            f"one: {text!r:.60}"
        )


def read_messages(value: Any, field: str, needs_user: bool = True) -> tuple[Message, ...]:
    """Read a conversation.

    Args:
      value: A list of `{role, content}`, or of ShareGPT's `{from, value}`; or the columns
        `{role: [...], content: [...]}` into which a `Sequence` of `datasets` turns it.
      field: Its name, for errors.
      needs_user: Whether a message must be the user's; False for a part of a conversation.

    Returns:
      The messages, as pairs of role (`system`, `user` or `assistant`) and content.

    Raises:
      ValueError: If it is no conversation of texts, or no message is the user's.
    """
    items = _items(value, field)
    messages = tuple(_read(item, f"{field}[{i}]") for i, item in enumerate(items))
    roles = [role for role, _ in messages]
    if "system" in roles[1:]:
        raise ValueError(
            f"{field!r}: must have a system message in the first place only, got the roles "
            f"{', '.join(roles):.80}"
        )
    if needs_user and "user" not in roles:
        raise ValueError(
            f"{field!r}: must have a message of the user, got the roles {', '.join(roles):.80}"
        )
    return messages


def masked_messages(value: Any, field: str) -> list[int]:
    """Return which messages of a conversation are not trained on: `weight: 0` or `train: false`.

    Args:
      value: A conversation, as in `read_messages`.
      field: Its name, for errors.

    Raises:
      ValueError: If a weight is another one than 0 and 1, or a message has thoughts of its own,
        without which its text must not be trained on.
    """
    masked = []
    for i, item in enumerate(_items(value, field)):
        where = f"{field}[{i}]"
        for name in _THOUGHTS:
            if item.get(name):
                raise ValueError(
                    f"{where!r}: must have its thoughts in the text, as <think>...</think> or what "
                    f"the model takes, got {name!r} beside it"
                )
        weights = [item[name] for name in _TRAINED_ON if item.get(name) is not None]
        for weight in weights:
            if not isinstance(weight, int | float) or weight not in (0, 1):
                raise ValueError(
                    f"{where!r}: must have 0 or 1 as 'weight', true or false as 'train', got "
                    f"{weight!r:.60}"
                )
        if not all(weights):
            masked.append(i)
    return masked


def unread_fields(value: Any, field: str) -> Iterator[str]:
    """Yield the names of what a conversation has and nothing reads, such as `messages[].id`."""
    known = (*_ROLE_AND_CONTENT, *_TRAINED_ON, *_THOUGHTS, *_CALLS)
    for item in _items(value, field):
        for name, content in item.items():
            if name not in known and content is not None:
                yield f"{field}[].{name}"


def _items(value: Any, field: str) -> list[Any]:
    """Return the messages of a conversation that may be columns.

    Raises:
      ValueError: If columns have different lengths.
    """
    if not isinstance(value, dict):
        return value
    roles = value["role"]
    columns = {name: column for name, column in value.items() if isinstance(column, list)}
    for column in columns.values():
        if len(column) != len(roles):
            raise ValueError(
                f"{field!r}: must have as many contents as roles, got {len(column)} and "
                f"{len(roles)}"
            )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def split_prompt(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """Split a conversation at the last message of the user; what comes after it is dropped.

    Returns:
      The messages before it, and its content.
    """
    last = max(i for i, (role, _) in enumerate(messages) if role == "user")
    return messages[:last], messages[last][1]


def _read(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise ValueError(f"{where!r}: must be a message, got {item!r:.60}")
    role, content = ("from", "value") if "from" in item else ("role", "content")
    if item.get(role) not in _ROLES:
        raise ValueError(
            f"{where!r}: must have a {role!r} of {', '.join(_ROLES)}, got {item.get(role)!r:.60}"
        )
    if any(item.get(name) for name in _CALLS):
        raise ValueError(f"{where!r}: must be a message without tool calls, got one with them")
    text = item.get(content)
    if isinstance(text, list) and text and all(_is_text(part) for part in text):
        text = "".join(part["text"] for part in text)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where!r}: must have a non-empty text as {content!r}, got {text!r:.60}")
    check_unicode(where, text)
    return _ROLES[item[role]], text


def _is_text(part: Any) -> bool:
    """Whether a part of a content is a text, and not an image."""
    return (
        isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        and not any(value for name, value in part.items() if name not in ("type", "text"))
    )


def check_unicode(field: str, text: str) -> None:
    """Refuse lone surrogates, which JSON can hold but which cannot be printed or stored."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{field!r}: must be Unicode text, got the lone surrogate {half!r}"
        ) from error
