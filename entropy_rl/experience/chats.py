"""Conversations as token ids, with a mask of what the assistant says.

Where the chat template marks it by `{% generation %}`, the mask is the template's. Otherwise, turn
i of the assistant are the tokens of `b` behind `a`:

    a = ids(turns < i, with the turn of the assistant opened)           b = ids(turns <= i)

Both must be prefixes of the whole conversation. Either way a turn ends with its end-of-sequence
token: what the template puts behind it, such as a line break, is not the assistant's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from entropy_rl.config.files import reading
from entropy_rl.experience.encoding import check_opened_turn, encode_prompt, render
from entropy_rl.experience.special_tokens import special_tokens
from entropy_rl.tasks.task import Problem

Message = tuple[str, str]  # role, content

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class EncodedText(NamedTuple):
    """A row of tokens.

    Attributes:
      ids: The tokens, up to the last that is a target.
      mask: Which of them are targets: what the assistant says, or a completion.
    """

    ids: list[int]
    mask: list[bool]


def encode_chat(
    messages: Sequence[Message],
    tokenizer: Any,
    eos_ids: Collection[int],
    *,
    start: int = 0,
    last_turn: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    allow_special: bool = False,
) -> EncodedText:
    """Encode a conversation by the chat template.

    Args:
      messages: The messages, as (role, content).
      tokenizer: A Hugging Face tokenizer with a chat template.
      eos_ids: Tokens of which one ends each turn of the assistant.
      start: Turns of the assistant before this message are no targets.
      last_turn: Whether the last of them alone is one.
      kwargs: Variables of the template.
      allow_special: Whether special tokens in messages are encoded as such; else they are refused.

    Raises:
      ValueError: If there is no turn of the assistant, or its tokens cannot be told.
    """
    turns = [i for i, (role, _) in enumerate(messages) if role == "assistant" and i >= start]
    if not turns:
        roles = ", ".join(role for role, _ in messages)
        raise ValueError(f"must have a message of the assistant, got the roles {roles:.80}")
    if last_turn:
        turns = turns[-1:]
    if not allow_special:
        _check_special(messages, tokenizer)
    messages = messages[: turns[-1] + 1]  # nothing is trained on behind it
    find = _marked_turns if _GENERATION.search(str(tokenizer.chat_template)) else _turns
    with reading("the chat template"):
        ids, spans = find(messages, turns, tokenizer, dict(kwargs or {}), last_turn)
    mask = [False] * len(ids)
    for first, last in spans:
        end = _end_of_turn(ids, first, last, tokenizer, eos_ids)
        mask[first:end] = [True] * (end - first)
    return EncodedText(ids[:end], mask[:end])


def encode_completion(
    prompt: str, completion: str, tokenizer: Any, eos_ids: Sequence[int]
) -> EncodedText:
    """Encode a prompt and its completion that are texts, with an end-of-sequence token.

    Args:
      prompt: The prompt, which gets the tokens that the tokenizer puts before a text.
      completion: The completion, which gets the first of `eos_ids` unless it ends with one.
      tokenizer: A Hugging Face tokenizer.
      eos_ids: Tokens that end a completion.

    Raises:
      ValueError: If the tokens of the prompt do not begin those of both texts together.
    """
    before = encode_prompt(Problem(0, prompt, ""), tokenizer)
    ids = encode_prompt(Problem(0, prompt + completion, ""), tokenizer)
    if ids[: len(before)] != before:
        raise ValueError(
            "the tokens of the prompt must begin those of prompt and completion, got other ones "
            f"where {prompt[-20:]!r} meets {completion[:20]!r}; move a space at the end of the "
            "prompt into the completion"
        )
    if ids[-1] not in eos_ids:
        ids = [*ids, eos_ids[0]]
    return EncodedText(ids, [False] * len(before) + [True] * (len(ids) - len(before)))


def _check_special(messages: Sequence[Message], tokenizer: Any) -> None:
    pattern = special_tokens(tokenizer)
    for i, (role, content) in enumerate(messages):
        if found := pattern.search(content):
            raise ValueError(
                f"message {i} of the {role} must have no special token, got {found[0]!r}; set "
                "data.special_tokens to true to encode it as a token"
            )


def _turns(
    messages: Sequence[Message],
    turns: Sequence[int],
    tokenizer: Any,
    kwargs: Mapping[str, Any],
    last_turn: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a conversation, and the places of turns by the rule of prefixes."""

    def encode(part: Sequence[Message], open_turn: bool = False) -> list[int]:
        text = render(tokenizer, part, kwargs, open_turn)
        return tokenizer.encode(text, add_special_tokens=False)

    ids, spans = encode(messages), []
    if turns[0] > 0:
        before = tuple(role for role, _ in messages[: turns[0]])
        template = str(tokenizer.chat_template)
        check_opened_turn(tokenizer, template, before, json.dumps(kwargs, sort_keys=True))
    for i in turns:
        before, with_turn = encode(messages[:i], open_turn=True), encode(messages[: i + 1])
        for part, what in ((before, "the opened turn"), (with_turn, "the turn")):
            if ids[: len(part)] != part:
                remedy = "" if last_turn else "; set data.turns to last if it changes earlier turns"
                raise ValueError(
                    f"must show {what} of message {i} in the whole conversation as it does at the "
                    f"end of one, got other tokens{remedy}"
                )
        spans.append((len(before), len(with_turn)))
    return ids, spans


def _marked_turns(
    messages: Sequence[Message],
    turns: Sequence[int],
    tokenizer: Any,
    kwargs: Mapping[str, Any],
    last_turn: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a conversation, and the places of turns that the template marks."""
    found = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **kwargs,
    )
    ids, mask = list(found["input_ids"]), [0, *found["assistant_masks"], 0]
    firsts = [t for t in range(len(ids)) if mask[t + 1] and not mask[t]]
    lasts = [t + 1 for t in range(len(ids)) if mask[t + 1] and not mask[t + 2]]
    spans = list(zip(firsts, lasts, strict=True))
    spoken = [i for i, (role, _) in enumerate(messages) if role == "assistant"]
    if len(spans) != len(spoken):
        raise ValueError(
            f"must mark each of the {len(spoken)} turns of the assistant, got {len(spans)} marks"
        )
    return ids, [span for i, span in zip(spoken, spans, strict=True) if i in turns]


def _end_of_turn(
    ids: Sequence[int], first: int, last: int, tokenizer: Any, eos_ids: Collection[int]
) -> int:
    """Return the place after the last end-of-sequence token of a turn."""
    ends = [t + 1 for t in range(first, last) if ids[t] in eos_ids]
    if not ends:
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in eos_ids)
        text = tokenizer.decode(ids[max(first, last - 8) : last])
        raise ValueError(
            "the chat template must end the turn of the assistant with an end-of-sequence token of "
            f"the model ({names}), got {text!r} at its end; model.extra_eos can name another"
        )
    return ends[-1]
