"""Encode observations: what the chat template puts between two turns of the model."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from entropy_rl.config.files import reading
from entropy_rl.experience.encoding import render
from entropy_rl.experience.special_tokens import encode_as_text, special_tokens
from entropy_rl.tasks.task import Problem

# Stand for the turn of the model and the observations while a template is rendered. The quote tells
# whether a template writes them as JSON.
_TURN, _OBSERVATION = "\ue000turn\ue001", '\ue000observation{}"\ue001'


def encode_observation(
    texts: Sequence[str], role: str, problem: Problem, last_id: int, tokenizer: Any
) -> list[int]:
    """Return the tokens between the end of a turn and the next one.

    For a chat prompt these are the end of the assistant's turn, unless its last token is just that,
    the messages, and the beginning of the next turn. For any other prompt it is the text alone.
    Nothing before it is encoded again: the row is its own tokens, then these. Added tokens in the
    text, such as "<|im_end|>" or "</tool_response>", are encoded as text.

    Args:
      texts: The observation, one text for each message.
      role: Of its messages, "user" or "tool".
      problem: The problem of the episode.
      last_id: Last token of the turn.
      tokenizer: The tokenizer.

    Raises:
      ValueError: The chat template cannot show such a message, or the text cannot be encoded.
    """
    if not problem.chat:
        return _encode([""] * (len(texts) + 1), texts, tokenizer)
    kwargs = json.dumps(dict(problem.chat_template_kwargs))
    around, as_json = _around(tokenizer, str(tokenizer.chat_template), role, len(texts), kwargs)
    texts = list(map(_json_text, texts)) if as_json else texts
    last = tokenizer.convert_ids_to_tokens(last_id)
    end = around[0].lstrip()  # Llama 2's template puts a space before it
    if special_tokens(tokenizer, every=True).fullmatch(last) and end.startswith(last):
        around = [end[len(last) :], *around[1:]]
    return _encode(around, texts, tokenizer)


def _encode(around: Sequence[str], texts: Sequence[str], tokenizer: Any) -> list[int]:
    whole, places = around[0], []
    for text, after in zip(texts, around[1:], strict=True):
        places.append((len(whole), len(whole) + len(text)))
        whole += text + after
    with reading("the observation of an environment"):
        if not any(map(special_tokens(tokenizer, every=True).search, texts)):
            return tokenizer.encode(whole, add_special_tokens=False)
        return encode_as_text(whole, places, tokenizer, add_special_tokens=False, every=True)


@functools.lru_cache(maxsize=64)
def _around(
    tokenizer: Any, template: str, role: str, count: int, kwargs: str
) -> tuple[list[str], bool]:
    """Return what a chat template puts between a turn and the messages that answer it, between
    these, and after them; and whether it writes them as JSON strings, as Llama's does.

    Args:
      tokenizer: The tokenizer.
      template: Its chat template, a part of the key.
      role: Of the messages.
      count: Of the messages.
      kwargs: Variables of the template, as JSON.

    Raises:
      ValueError: It does not show the turn and the messages, one after the other.
    """
    where = f"{tokenizer.name_or_path}: the chat template"
    marks = [_OBSERVATION.format(i) for i in range(count)]
    messages = [("user", "x"), ("assistant", _TURN), *((role, mark) for mark in marks)]
    with reading(where):
        text = render(tokenizer, messages, json.loads(kwargs))
    as_json = marks[0] not in text
    shown = list(map(_json_text, marks)) if as_json else marks
    around, rest = [], text.partition(_TURN)[2]
    for mark in shown:
        before, _, rest = rest.partition(mark)
        around.append(before)
    if any(text.count(mark) != 1 for mark in (_TURN, *shown)):
        raise ValueError(
            f"{where}: must show the turn of the assistant and the message of the {role} as they "
            "are, which episodes of several turns need, got another text"
        )
    return [*around, rest], as_json


def _json_text(text: str) -> str:
    """Return a text as it is between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
