"""Rows of chat files: what is in them, their encoding, and the batches of each step."""

from __future__ import annotations

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.config.checks import require, shown
from entropy_rl.config.sft import ChatDataConfig
from entropy_rl.config.values import refuse_unused
from entropy_rl.experience.chats import EncodedText, Message, encode_chat, encode_completion
from entropy_rl.experience.encoding import check_template_kwargs
from entropy_rl.experience.padding import pad_rows, padded_length
from entropy_rl.learner.sft import SupervisedBatch
from entropy_rl.runs.logging import track
from entropy_rl.tasks.data_files.fields import take_text
from entropy_rl.tasks.data_files.files import count_rows, find_data_files, read_rows
from entropy_rl.tasks.data_files.messages import (
    is_messages,
    masked_messages,
    read_messages,
    unread_fields,
)

log = logging.getLogger(__name__)

_CONVERSATIONS = ("messages", "conversations")
_FIELDS = (*_CONVERSATIONS, "prompt", "completion")
_FIELDS_OF_PAIRS = ("prompt", "chosen", "rejected")
# Fields of a row without which its texts would mean something else, and why they are refused.
_REFUSED = {
    "tools": "tools are not described to the model",
    "system": "a system text is the first of the messages",
    "chat_template_kwargs": "variables of the chat template are data.chat_template_kwargs",
    "label": "labels of rows are not read",
}
_EMPTY = (None, "", "[]", [], {})
_HELD_OUT = 2**31 - 3  # of the seed that chooses the rows; epochs have the numbers before

# A conversation, or the two of a pair: the chosen and the rejected one.
Row = tuple[EncodedText, ...]


class _Sample(NamedTuple):
    """A conversation, trained on from message `start` on but for those masked; or two texts."""

    messages: tuple[Message, ...] = ()
    start: int = 0
    masked: tuple[int, ...] = ()
    prompt: str = ""
    completion: str = ""


class ChatRows(NamedTuple):
    """The encoded rows of a run.

    Attributes:
      train: Those that are trained on.
      validation: Those of the validation loss; empty without one.
      length: T, of the longest, rounded up.
    """

    train: list[Row]
    validation: list[Row]
    length: int


def read_chats(
    config: ChatDataConfig, tokenizer: Any, eos_ids: Sequence[int], pairs: bool, seed: int
) -> ChatRows:
    """Read and encode the files of a config.

    Args:
      config: The section `data`.
      tokenizer: A Hugging Face tokenizer.
      eos_ids: Tokens that end a completion.
      pairs: Whether rows are pairs of a chosen and a rejected completion.
      seed: Chooses the rows that are held out.

    Raises:
      ValueError: If there are no files, a row cannot be used, or none is left.
    """
    train = _read_files(config, "train", tokenizer, eos_ids, pairs)
    validation: list[Row] = []
    if config.validation is not None:
        validation = _read_files(config, "validation", tokenizer, eos_ids, pairs)
    elif config.held_out:
        allowed = f"less than {len(train)}, the rows of data.train"
        require(config.held_out < len(train), "data.held_out", config.held_out, allowed)
        held = _choose_held_out(train, config.held_out, seed)
        validation = [row for i, row in enumerate(train) if i in held]
        train = [row for i, row in enumerate(train) if i not in held]
    if validation:
        _warn_of_overlap(train, validation)
    longest = max(_length(row) for row in (*train, *validation))
    return ChatRows(train, validation, padded_length(longest))


def _choose_held_out(rows: Sequence[Row], count: int, seed: int) -> set[int]:
    """Choose rows in a random order, all those of a prompt together as long as they fit."""
    order = np.random.default_rng([seed, _HELD_OUT]).permutation(len(rows)).tolist()
    prompts = [_prompt(row) for row in rows]
    sizes, held, chosen = Counter(prompts), 0, set()
    for i in order:
        if prompts[i] not in chosen and held + sizes[prompts[i]] <= count:
            chosen.add(prompts[i])
            held += sizes[prompts[i]]
    whole = [i for i in order if prompts[i] in chosen]
    return {*whole, *[i for i in order if prompts[i] not in chosen][: count - held]}


def _warn_of_overlap(train: Sequence[Row], validation: Sequence[Row]) -> None:
    """Warn of validation rows whose prompt is trained on: their loss measures memory."""
    rows, prompts = set(map(hash, train)), set(map(_prompt, train))
    if found := sum(_prompt(row) in prompts for row in validation):
        log.warning(
            "%d of %d validation rows have the prompt of a row that is trained on, %d are equal to "
            "one: the validation loss measures memory too",
            found, len(validation), sum(hash(row) in rows for row in validation),
        )  # fmt: skip


def _prompt(row: Row) -> int:
    return hash(row[0].prompt.tobytes())


def batch_of_step(
    rows: Sequence[Row], step: int, *, seed: int, batch_size: int, length: int, pad_id: int
) -> SupervisedBatch:
    """Return the rows of a step: of a new order in each epoch, in which every row comes once.

    Args:
      rows: The rows.
      step: The step, from 0.
      seed: Seed of the orders.
      batch_size: Rows of a step; those at the end of an epoch are followed by those of the next.
      length: T.
      pad_id: Fills the end of rows.
    """
    chosen = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, i = divmod(place, len(rows))
        chosen.append(rows[_order(seed, epoch, len(rows))[i]])
    return make_rows(chosen, batch_size, length, pad_id)


@functools.lru_cache(maxsize=2)  # a step can have rows of two epochs
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of the rows in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def make_rows(rows: Sequence[Row], batch_size: int, length: int, pad_id: int) -> SupervisedBatch:
    """Pad rows to one array, and their number to `batch_size` by rows without weights."""
    texts = [text for row in rows for text in row]
    none = [()] * (batch_size * len(rows[0]) - len(texts))
    return SupervisedBatch(
        pad_rows([text.ids for text in texts] + none, length, pad_id, np.int32),
        pad_rows([text.mask for text in texts] + none, length, 0, np.float32),
    )


def _length(row: Row) -> int:
    return max(len(text.ids) for text in row)


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


def _read_files(
    config: ChatDataConfig, split: str, tokenizer: Any, eos_ids: Sequence[int], pairs: bool
) -> list[Row]:
    rows, unused = [], set()
    for content, row in read_contents(config, split, tokenizer, eos_ids, pairs):
        rows.append(row)
        unused.update(_unused_fields(content, pairs))
    if unused:
        log.warning("data.%s: fields unused: %s", split, ", ".join(sorted(unused)))
    return rows


def _unused_fields(content: Mapping[str, Any], pairs: bool) -> Iterator[str]:
    """Yield the names of the fields of a row, and of its messages, that nothing reads."""
    for name, value in content.items():
        if value in _EMPTY:
            continue
        if name not in (_FIELDS_OF_PAIRS if pairs else _FIELDS):
            yield name
        elif is_messages(value):
            yield from unread_fields(value, name)


def read_contents(
    config: ChatDataConfig, split: str, tokenizer: Any, eos_ids: Sequence[int], pairs: bool = False
) -> Iterator[tuple[dict[str, Any], Row]]:
    """Iterate over the rows of files as they are, each with its encoding.

    Args:
      config: The section `data`.
      split: "train" or "validation".
      tokenizer: A Hugging Face tokenizer.
      eos_ids: Tokens that end a completion.
      pairs: Whether rows are pairs of a chosen and a rejected completion.

    Raises:
      ValueError: As `read_chats`.
    """
    if config.chat_template_kwargs:
        _require_template(tokenizer)
        where = "data.chat_template_kwargs"
        check_template_kwargs(tokenizer, config.chat_template_kwargs, where)
    where, given = f"data.{split}", getattr(config, split)
    files = find_data_files(where, given, split)
    require(bool(files), where, given, "a file, a directory or a pattern that exists")
    paths = next(iter(files.values()))
    used = too_long = invalid = count = 0
    has_texts = has_messages = False
    for place, content in track("rows", read_rows(paths), count_rows(paths), "encoded"):
        count += 1
        has_texts |= isinstance(content.get("prompt"), str)
        try:
            samples = _read_pair(content, config) if pairs else (_read_sample(content, config),)
            has_messages |= any(sample.messages for sample in samples)
            row = tuple(_encode(sample, config, tokenizer, eos_ids) for sample in samples)
            if pairs and row[0] == row[1]:
                raise ValueError("'chosen' and 'rejected' must differ, got equal ones")
        except ValueError as error:
            if config.invalid_rows == "error":
                raise ValueError(f"{place}: {error}") from error
            invalid += 1
            reason = f"{place}: {error}"
            continue
        if _length(row) > config.max_tokens:
            too_long += 1
            reason = f"{place} with {_length(row)} tokens"
            continue
        used += 1
        yield content, row
    if not used:
        raise ValueError(f"{where}: must have a row that can be used, got {count}; {reason}")
    if config.chat and not has_texts:
        raise ValueError(
            f"data.chat: must be false where the prompts of {where} are messages, got true"
        )
    if split == "train" and not has_messages:
        of_messages = ("turns", "chat_template_kwargs", "special_tokens")
        refuse_unused(config, "data.", "because no row has messages", *of_messages)
    if too_long:
        log.warning(
            "%s: %d of %d rows are left out: they have more tokens than data.max_tokens=%d",
            where, too_long, count, config.max_tokens,
        )  # fmt: skip
    if invalid:
        log.warning("%s: %d of %d rows are left out, which cannot be used", where, invalid, count)


def _encode(
    sample: _Sample, config: ChatDataConfig, tokenizer: Any, eos_ids: Sequence[int]
) -> EncodedText:
    if not sample.messages:
        return encode_completion(sample.prompt, sample.completion, tokenizer, eos_ids)
    _require_template(tokenizer)
    return encode_chat(
        sample.messages,
        tokenizer,
        eos_ids,
        start=sample.start,
        masked=sample.masked,
        last_turn=config.turns == "last",
        kwargs=config.chat_template_kwargs,
        allow_special=config.special_tokens,
    )


def _require_template(tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: must have a chat template for messages, got none"
        )


# --------------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------------


def _read_sample(row: Mapping[str, Any], config: ChatDataConfig) -> _Sample:
    """Read a conversation, or a prompt and its completion."""
    _refuse_fields(row)
    name = next((name for name in _CONVERSATIONS if row.get(name) is not None), None)
    if name is not None:
        require(is_messages(row[name]), repr(name), row[name], "a list of messages")
        messages, masked = _read_chat(row[name], name)
        return _Sample(messages, masked=masked)
    if row.get("prompt") is None or row.get("completion") is None:
        raise ValueError(f"must have 'messages', or 'prompt' and 'completion', got {_names(row)}")
    return _join(row, row["prompt"], "completion", config)


def _read_pair(row: Mapping[str, Any], config: ChatDataConfig) -> tuple[_Sample, _Sample]:
    """Read two completions of a prompt, of which one is preferred.

    Without a prompt, or with a text that is that of the user, `chosen` and `rejected` may be whole
    conversations: what they have in common at the beginning is the prompt.
    """
    _refuse_fields(row)
    names = ("chosen", "rejected")
    if any(row.get(name) is None for name in names):
        raise ValueError(f"must have 'prompt', 'chosen' and 'rejected', got {_names(row)}")
    prompt = row.get("prompt")
    whole = all(is_messages(row[name]) for name in names) and not is_messages(prompt)
    if whole and not all(_is_reply(row[name], name) for name in names):
        (chosen, of_chosen), (rejected, of_rejected) = (_read_chat(row[n], n) for n in names)
        same = zip(chosen, rejected, strict=False)
        start = next(
            (i for i, (a, b) in enumerate(same) if a != b), min(len(chosen), len(rejected))
        )
        _require_same_prompt(chosen, rejected)
        if prompt is not None and (start == 0 or chosen[start - 1] != ("user", prompt)):
            raise ValueError(
                "'prompt' must be the last message of the user that 'chosen' and 'rejected' have "
                f"in common, got {shown(prompt, 60)}"
            )
        return _Sample(chosen, start, of_chosen), _Sample(rejected, start, of_rejected)
    if prompt is None:
        raise ValueError(f"must have 'prompt', 'chosen' and 'rejected', got {_names(row)}")
    return _join(row, prompt, "chosen", config), _join(row, prompt, "rejected", config)


def _require_same_prompt(chosen: Sequence[Message], rejected: Sequence[Message]) -> None:
    """Require two conversations to agree up to the first message of the assistant."""
    before = [
        list(itertools.takewhile(lambda message: message[0] != "assistant", messages))
        for messages in (chosen, rejected)
    ]
    if before[0] != before[1]:
        raise ValueError(
            "'chosen' and 'rejected' must have the same messages before the first one of the "
            f"assistant, got {shown(before[0], 80)} and {shown(before[1], 80)}"
        )


def _join(row: Mapping[str, Any], prompt: Any, name: str, config: ChatDataConfig) -> _Sample:
    """Join a prompt with a completion; if one of them is a list of messages, both are."""
    completion = row[name]
    if not (config.chat or is_messages(prompt) or is_messages(completion)):
        return _Sample(prompt=take_text(row, "prompt"), completion=take_text(row, name))
    before = (
        read_messages(prompt, "prompt")
        if is_messages(prompt)
        else (("user", take_text(row, "prompt")),)
    )
    if is_messages(completion):
        after, masked = _read_chat(completion, name, needs_user=False)
        if after[: len(before)] == before:  # a whole conversation
            return _Sample(after, len(before), masked)
        if after[0][0] in ("system", "user"):
            raise ValueError(
                f"{name!r} must begin with a message of the assistant, or with those of 'prompt', "
                f"got {shown(after[0], 60)}"
            )
    else:
        after, masked = (("assistant", take_text(row, name)),), ()
    return _Sample((*before, *after), len(before), tuple(len(before) + i for i in masked))


def _read_chat(
    value: Any, name: str, needs_user: bool = True
) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """Return the messages of a conversation, and which of them are not trained on."""
    messages = read_messages(value, name, needs_user)
    return messages, tuple(masked_messages(value, name))


def _refuse_fields(row: Mapping[str, Any]) -> None:
    """Refuse a row with a field that would change what is trained on."""
    for name, why in _REFUSED.items():
        value = row.get(name)
        # A label that is a text, such as a topic, does not say whether the row is good.
        is_topic = name == "label" and isinstance(value, str)
        if value not in _EMPTY and not is_topic:
            raise ValueError(f"{name!r}: must be absent or null, as {why}, got {shown(value, 60)}")


def _is_reply(messages: Any, name: str) -> bool:
    """Whether messages begin with the assistant's, and are no whole conversation."""
    return read_messages(messages, name, needs_user=False)[0][0] == "assistant"


def _names(row: Mapping[str, Any]) -> str:
    return f"the fields {', '.join(map(repr, row))}" if row else "no field"
