"""Encode observations: what the chat template puts between two turns of the model."""

from __future__ import annotations

import functools
import json
from typing import Any

from entropy_rl.config.files import reading
from entropy_rl.experience.encoding import render
from entropy_rl.experience.special_tokens import encode_as_text, special_tokens
from entropy_rl.tasks.task import Problem

# Stand for the turn of the model and the observation while a template is rendered.
_TURN, _OBSERVATION = "\ue000turn\ue001", "\ue000observation\ue001"


def encode_observation(
    text: str, role: str, problem: Problem, last_id: int, tokenizer: Any
) -> list[int]:
    """Return the tokens between the end of a turn and the next one.

    For a chat prompt these are the end of the assistant's turn, unless its last token is just that,
    the message, and the beginning of the next turn. For any other prompt it is the text alone.
    Nothing before it is encoded again: the row is its own tokens, then these. Added tokens in the
    text, such as "<|im_end|>" or "</tool_response>", are encoded as text.

    Args:
      text: The observation.
      role: Of its message, "user" or "tool".
      problem: The problem of the episode.
      last_id: Last token of the turn.
      tokenizer: The tokenizer.

    Raises:
      ValueError: The chat template cannot show such a message, or the text cannot be encoded.
    """
    if not problem.chat:
        return _encode("", text, "", tokenizer)
    kwargs = json.dumps(dict(problem.chat_template_kwargs), sort_keys=True)
    before, after = _around(tokenizer, str(tokenizer.chat_template), role, kwargs)
    last = tokenizer.convert_ids_to_tokens(last_id)
    if special_tokens(tokenizer).fullmatch(last) and before.startswith(last):
        before = before[len(last) :]
    return _encode(before, text, after, tokenizer)


def _encode(before: str, text: str, after: str, tokenizer: Any) -> list[int]:
    whole = before + text + after
    with reading("the observation of an environment"):
        if not special_tokens(tokenizer, every=True).search(text):
            return tokenizer.encode(whole, add_special_tokens=False)
        place = (len(before), len(before) + len(text))
        return encode_as_text(whole, [place], tokenizer, add_special_tokens=False, every=True)


@functools.lru_cache(maxsize=16)
def _around(tokenizer: Any, template: str, role: str, kwargs: str) -> tuple[str, str]:
    """Return what a chat template puts between a turn and an observation, and after this.

    Args:
      tokenizer: The tokenizer.
      template: Its chat template, a part of the key.
      role: Of the observation.
      kwargs: Variables of the template, as JSON.

    Raises:
      ValueError: It does not show the two texts, one after the other.
    """
    where = f"{tokenizer.name_or_path}: the chat template"
    messages = [("user", "x"), ("assistant", _TURN), (role, _OBSERVATION)]
    with reading(where):
        text = render(tokenizer, messages, json.loads(kwargs))
    if text.count(_TURN) != 1 or text.count(_OBSERVATION) != 1:
        raise ValueError(
            f"{where}: must show the turn of the assistant and the message of the {role} as they "
            "are, which episodes of several turns need, got another text"
        )
    between, _, after = text.partition(_TURN)[2].partition(_OBSERVATION)
    return between, after
