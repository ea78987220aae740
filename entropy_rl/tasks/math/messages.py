"""Prompts that are lists of chat messages, in the forms of verl, TRL and ShareGPT."""

from __future__ import annotations

import re
from typing import Any

Message = tuple[str, str]  # role, content

_ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    **{"human": "user", "gpt": "assistant"},  # ShareGPT
}


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
    if isinstance(value, dict):
        columns = value["role"], value["content"]
        if len(columns[0]) != len(columns[1]):
            raise ValueError(
                f"{field!r}: must have as many contents as roles, got {len(columns[1])} and "
                f"{len(columns[0])}"
            )
        value = [{"role": role, "content": content} for role, content in zip(*columns, strict=True)]
    messages = tuple(_read(item, f"{field}[{i}]") for i, item in enumerate(value))
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
    if item.get("tool_calls"):
        raise ValueError(f"{where!r}: must be a message without tool calls, got one with them")
    text = item.get(content)
    if isinstance(text, list) and text and all(_is_text(part) for part in text):
        text = "".join(part["text"] for part in text)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where!r}: must have a non-empty text as {content!r}, got {text!r:.60}")
    return _ROLES[item[role]], text


def _is_text(part: Any) -> bool:
    """Whether a part of a content is a text, and not an image."""
    return (
        isinstance(part, dict)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        and not any(value for name, value in part.items() if name not in ("type", "text"))
    )
