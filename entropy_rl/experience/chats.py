"""Conversations as token ids, with a mask of what the assistant says.

Where the chat template marks it by `{% generation %}`, the mask is the template's. Otherwise, turn
i of the assistant are the tokens of `b` behind `a`:

    a = ids(turns < i, with the turn of the assistant opened)           b = ids(turns <= i)

Both must be prefixes of the whole conversation; with marks, `a` must, and the text of the turn must
be between them. Either way a turn ends with its end-of-sequence token: what the template puts
behind it, such as a line break, is not the assistant's.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from entropy_rl.config.files import reading
from entropy_rl.experience.encoding import (
    check_opened_turn,
    encode_marked,
    encode_prompt,
    render,
)
from entropy_rl.experience.special_tokens import special_ids, special_tokens
from entropy_rl.tasks.task import Problem

Message = tuple[str, str]  # role, content

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class EncodedText:
    """A row of tokens.

    Attributes:
      ids: The tokens, up to the last that is a target, int32[T].
      mask: Which of them are targets: what the assistant says, or a completion; bool[T].
    """

    ids: np.ndarray
    mask: np.ndarray

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EncodedText)
            and np.array_equal(self.ids, other.ids)
            and np.array_equal(self.mask, other.mask)
        )

    def __hash__(self) -> int:
        return hash((self.ids.tobytes(), self.mask.tobytes()))

    @property
    def prompt(self) -> np.ndarray:
        """The tokens before the first target."""
        return self.ids[: self.mask.argmax()]


def encode_chat(
    messages: Sequence[Message],
    tokenizer: Any,
    eos_ids: Collection[int],
    *,
    start: int = 0,
    masked: Collection[int] = (),
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
      masked: Messages that are no targets either.
      last_turn: Whether the last of the others alone is one.
      kwargs: Variables of the template.
      allow_special: Whether special tokens in messages are encoded as such; else they are refused.

    Raises:
      ValueError: If there is no turn of the assistant, or its tokens cannot be told.
    """
    said = [i for i, (role, _) in enumerate(messages) if role == "assistant" and i >= start]
    turns = [i for i in said if i not in masked]
    if not turns:
        roles = ", ".join(role for role, _ in messages)
        needed = " that 'weight' or 'train' does not mask" if said else ""
        raise ValueError(f"must have a message of the assistant{needed}, got the roles {roles:.80}")
    if last_turn:
        turns = turns[-1:]
    if turns[0] == 0:
        raise ValueError(
            "must begin with a message of the user or the system, got one of the assistant"
        )
    if not allow_special:
        _check_special(messages, tokenizer)
    messages = messages[: turns[-1] + 1]  # nothing is trained on behind it
    find = _marked_turns if _GENERATION.search(str(tokenizer.chat_template)) else _turns
    with reading("the chat template"):
        ids, spans = find(messages, turns, tokenizer, dict(kwargs or {}), last_turn)
    mask = np.zeros(len(ids), bool)
    for first, last in spans:
        end = _end_of_turn(ids, first, last, tokenizer, eos_ids)
        mask[first:end] = True
    return EncodedText(np.array(ids[:end], np.int32), mask[:end].copy())


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
        ends_with_space = prompt[-1:].isspace()
        remedy = "; move a space at the end of the prompt into the completion"
        raise ValueError(
            "the tokens of the prompt must begin those of prompt and completion, got other ones "
            f"where {prompt[-20:]!r} meets {completion[:20]!r}{remedy if ends_with_space else ''}"
        )
    if ids[-1] not in eos_ids:
        ids = [*ids, eos_ids[0]]
    return EncodedText(np.array(ids, np.int32), np.arange(len(ids)) >= len(before))


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
    text = render(tokenizer, messages, kwargs, open_turn=False)
    whole = _Encoded(text, tokenizer.encode(text, add_special_tokens=False), tokenizer)
    before = tuple(role for role, _ in messages[: turns[0]])
    template = str(tokenizer.chat_template)
    check_opened_turn(tokenizer, template, before, json.dumps(kwargs, sort_keys=True))
    spans = []
    for i in turns:
        first = whole.tokens_of(render(tokenizer, messages[:i], kwargs))
        last = whole.tokens_of(render(tokenizer, messages[: i + 1], kwargs, open_turn=False))
        for count, what in ((first, "the opened turn"), (last, "the turn")):
            if count is None:
                raise _differs(what, i, last_turn)
        spans.append((first, last))
    return whole.ids, spans


def _marked_turns(
    messages: Sequence[Message],
    turns: Sequence[int],
    tokenizer: Any,
    kwargs: Mapping[str, Any],
    last_turn: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a conversation, and the places of turns that the template marks."""
    ids, marks = encode_marked(tokenizer, messages, kwargs)
    edges = np.flatnonzero(np.diff([0, *marks, 0])).tolist()
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    spoken = [i for i, (role, _) in enumerate(messages) if role == "assistant"]
    if len(spans) != len(spoken):
        raise ValueError(
            f"must mark each of the {len(spoken)} turns of the assistant, got {len(spans)} marks"
        )
    whole = _Encoded(render(tokenizer, messages, kwargs, open_turn=False), ids, tokenizer)
    found = [(i, span) for i, span in zip(spoken, spans, strict=True) if i in turns]
    for i, (first, last) in found:
        # The mark may include the header of the turn, or begin after what a prompt ends with.
        opened = whole.tokens_of(render(tokenizer, messages[:i], kwargs))
        if opened is None or opened >= last:
            raise _differs("the opened turn", i, last_turn)
        text, shown = messages[i][1], _without_space(tokenizer.decode(ids[first:last]))
        if _without_space(text) not in shown:
            # The tokenizer may change texts too, such as to lower case.
            text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
            if _without_space(text) not in shown:
                raise _differs("the text", i, last_turn)
    return ids, [span for _, span in found]


class _Encoded:
    """A text and its tokens, of which beginnings are looked up.

    Args:
      text: The text.
      ids: Its tokens.
      tokenizer: The tokenizer.
    """

    def __init__(self, text: str, ids: list[int], tokenizer: Any):
        self.text, self.ids, self._tokenizer = text, ids, tokenizer
        # Where special tokens begin in the text and among the tokens, and where they end.
        self._splits: list[tuple[int, int]] = []
        self._ends: list[int] = []
        known = special_ids(tokenizer)
        found = list(special_tokens(tokenizer).finditer(text))
        of_ids = {i for i, _ in known.values()}
        places = [place for place, i in enumerate(ids) if i in of_ids]
        if [known[match[0]][0] for match in found] == [ids[place] for place in places]:
            for match, place in zip(found, places, strict=True):
                if known[match[0]][1]:
                    self._splits.append((match.start(), place))
                    self._ends.append(match.end())

    def tokens_of(self, part: str) -> int | None:
        """Return the number of tokens of a text if they begin these, else None.

        As special tokens split a text, only what follows the last of them is encoded again.
        """
        if part == self.text:
            return len(self.ids)
        splits = [(0, 0)]
        if self.text.startswith(part) and (i := bisect.bisect_right(self._ends, len(part))):
            splits.insert(0, self._splits[i - 1])
        for start, count in splits:
            rest = self._tokenizer.encode(part[start:], add_special_tokens=False)
            if self.ids[count : count + len(rest)] == rest:
                return count + len(rest)
        return None


def _differs(what: str, i: int, last_turn: bool) -> ValueError:
    remedy = "" if last_turn else "; set data.turns to last if it changes earlier turns"
    return ValueError(
        f"must show {what} of message {i} in the whole conversation as it does at the end of one, "
        f"got other tokens{remedy}"
    )


def _without_space(text: str) -> str:
    return "".join(text.split())


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
