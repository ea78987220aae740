"""Rows of chat files: what is in them, their encoding, and the batches of each step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.config.checks import require, shown
from entropy_rl.config.sft import ChatDataConfig
from entropy_rl.config.values import refuse_unused
from entropy_rl.experience.chats import EncodedText, Message, encode_chat, encode_completion
from entropy_rl.experience.encoding import check_template_kwargs
from entropy_rl.learner.sft import SupervisedBatch
from entropy_rl.tasks.math.fields import take_text
from entropy_rl.tasks.math.files import find_data_files, read_rows
from entropy_rl.tasks.math.messages import is_messages, read_messages

log = logging.getLogger(__name__)

_LENGTH_MULTIPLE = 8
_CONVERSATIONS = ("messages", "conversations")
_HELD_OUT = 2**31 - 3  # of the seed that chooses the rows; epochs have the numbers before

# A conversation, or the two of a pair: the chosen and the rejected one.
Row = tuple[EncodedText, ...]


class _Sample(NamedTuple):
    """A conversation whose messages from `start` on are trained on; or two texts."""

    messages: tuple[Message, ...] = ()
    start: int = 0
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
        order = np.random.default_rng([seed, _HELD_OUT]).permutation(len(train))
        validation = [train[i] for i in sorted(order[: config.held_out])]
        train = [train[i] for i in sorted(order[config.held_out :])]
    longest = max(_length(row) for row in (*train, *validation))
    return ChatRows(train, validation, -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)


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
    chosen, orders = [], {}
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, i = divmod(place, len(rows))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(len(rows))
        chosen.append(rows[orders[epoch][i]])
    return make_rows(chosen, batch_size, length, pad_id)


def make_rows(rows: Sequence[Row], batch_size: int, length: int, pad_id: int) -> SupervisedBatch:
    """Pad rows to one array, and their number to `batch_size` by rows without weights."""
    texts = [text for row in rows for text in row]
    count = batch_size * len(rows[0])
    ids = np.full((count, length), pad_id, np.int32)
    weights = np.zeros((count, length), np.float32)
    for i, text in enumerate(texts):
        ids[i, : len(text.ids)] = text.ids
        weights[i, : len(text.ids)] = text.mask
    return SupervisedBatch(ids, weights)


def _length(row: Row) -> int:
    return max(len(text.ids) for text in row)


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


def _read_files(
    config: ChatDataConfig, split: str, tokenizer: Any, eos_ids: Sequence[int], pairs: bool
) -> list[Row]:
    return [row for _, row in read_contents(config, split, tokenizer, eos_ids, pairs)]


def read_contents(
    config: ChatDataConfig, split: str, tokenizer: Any, eos_ids: Sequence[int], pairs: bool = False
) -> list[tuple[dict[str, Any], Row]]:
    """Read the rows of files as they are, each with its encoding.

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
    rows, too_long, invalid, count, has_texts, has_messages = [], 0, 0, 0, False, False
    for place, content in read_rows(next(iter(files.values()))):
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
        rows.append((content, row))
    if not rows:
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
    return rows


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
    name = next((name for name in _CONVERSATIONS if row.get(name) is not None), None)
    if name is not None:
        require(is_messages(row[name]), repr(name), row[name], "a list of messages")
        return _Sample(read_messages(row[name], name))
    if row.get("prompt") is None or row.get("completion") is None:
        raise ValueError(f"must have 'messages', or 'prompt' and 'completion', got {_names(row)}")
    return _join(row, row["prompt"], "completion", config)


def _read_pair(row: Mapping[str, Any], config: ChatDataConfig) -> tuple[_Sample, _Sample]:
    """Read two completions of a prompt, of which one is preferred.

    Without a prompt, or with a text that is that of the user, `chosen` and `rejected` may be whole
    conversations: what they have in common at the beginning is the prompt.
    """
    names = ("chosen", "rejected")
    if any(row.get(name) is None for name in names):
        raise ValueError(f"must have 'prompt', 'chosen' and 'rejected', got {_names(row)}")
    prompt = row.get("prompt")
    whole = all(is_messages(row[name]) for name in names) and not is_messages(prompt)
    if whole and not all(_is_reply(row[name], name) for name in names):
        chosen, rejected = (read_messages(row[name], name) for name in names)
        same = zip(chosen, rejected, strict=False)
        start = next(
            (i for i, (a, b) in enumerate(same) if a != b), min(len(chosen), len(rejected))
        )
        if prompt is not None and (start == 0 or chosen[start - 1] != ("user", prompt)):
            raise ValueError(
                "'prompt' must be the last message of the user that 'chosen' and 'rejected' have "
                f"in common, got {shown(prompt, 60)}"
            )
        return _Sample(chosen, start), _Sample(rejected, start)
    if prompt is None:
        raise ValueError(f"must have 'prompt', 'chosen' and 'rejected', got {_names(row)}")
    chosen, rejected = (_join(row, prompt, name, config) for name in names)
    return chosen, rejected


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
    after = (
        read_messages(completion, name, needs_user=False)
        if is_messages(completion)
        else (("assistant", take_text(row, name)),)
    )
    return _Sample((*before, *after), len(before))


def _is_reply(messages: Any, name: str) -> bool:
    """Whether messages begin with the assistant's, and are no whole conversation."""
    return read_messages(messages, name, needs_user=False)[0][0] == "assistant"


def _names(row: Mapping[str, Any]) -> str:
    return f"the fields {', '.join(map(repr, row))}" if row else "no field"
