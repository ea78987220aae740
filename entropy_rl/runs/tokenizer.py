"""The tokenizer of a model: loading, the tokens that end a completion, and ids without a token."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import shown
from entropy_rl.config.files import reading, require_file
from entropy_rl.lm_head.vocabulary import Ranges, unused_ranges
from entropy_rl.models.hf_config import read_json

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# What transformers opens for a tokenizer, if it is there.
TOKENIZER_PARTS = (
    *_TOKENIZER_FILES,
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# The files with an `eos_token_id`, a number or a list.
_EOS_FILES = ("tokenizer_config.json", "config.json", "generation_config.json")


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a directory, without asking the network.

    Raises:
      ValueError: If there is none, or it cannot be read.
    """
    ends = named_ends(directory)  # raises early, and in other words than transformers
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns that torch is missing
    from transformers import AutoTokenizer

    # Without any of them, transformers makes an empty tokenizer for some architectures.
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(
            f"{directory}: no usable tokenizer: there is no {' or '.join(_TOKENIZER_FILES)}"
        )
    for name in TOKENIZER_PARTS:
        if (directory / name).exists():
            require_file(directory / name)
    # Several libraries read it, and each raises its own.
    with reading(f"{directory}: no usable tokenizer"):
        try:
            # Without a value, transformers asks in the terminal, and runs code of the checkpoint.
            tokenizer = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise ValueError("it needs code of its own, which is not supported") from error
            raise
        tokenizer.encode("a")  # a pattern that cannot be compiled shows here
    mark_special(tokenizer, [token for ids in ends.values() for token in ids])
    return tokenizer


def mark_special(tokenizer: Any, ids: Iterable[int]) -> None:
    """Make added tokens special, whatever their file says: they end a turn, and are no text.

    Args:
      tokenizer: The tokenizer.
      ids: End-of-sequence tokens; those of the vocabulary itself, such as a line break, stay.
    """
    added = tokenizer.added_tokens_decoder
    for token in (added[i] for i in ids if i in added and not added[i].special):
        token.special = True
        tokenizer.add_tokens([token], special_tokens=True)


def named_ends(directory: Path) -> dict[Path, list[int]]:
    """Return the `eos_token_id` of each file that has one, a number or a list, as a list.

    Raises:
      ValueError: If one is something else.
    """
    found = {}
    for name in _EOS_FILES:
        if (directory / name).exists():
            value = read_json(directory / name).get("eos_token_id")
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(type(token) is int for token in ids):
                raise _wrong_ends(directory / name, value)
            found[directory / name] = ids
    return found


def _wrong_ends(file: Path, value: Any) -> ValueError:
    return ValueError(
        f"{file}: eos_token_id: must be ids of the tokenizer's tokens, got {shown(value)}"
    )


def eos_ids_of(directory: Path, tokenizer: Any, extra: Sequence[int | str] = ()) -> tuple[int, ...]:
    """Return the tokens that end a completion, the tokenizer's own first.

    Those of config.json and generation_config.json count as well, as in transformers' `generate`.

    Raises:
      ValueError: If there is none, or one of them is no token, so that it could never occur.
    """
    known = set(tokenizer.get_vocab().values())
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for file, named in named_ends(directory).items():
        if not known.issuperset(named):
            raise _wrong_ends(file, named)
        ids += named
    ids += [_token_id(tokenizer, token, known) for token in extra]
    if not ids:
        raise ValueError(
            f"{directory}: the tokenizer has no end-of-sequence token, so no completion could end; "
            "name one in model.extra_eos"
        )
    return tuple(dict.fromkeys(ids))


def _token_id(tokenizer: Any, token: int | str, known: set[int]) -> int:
    if isinstance(token, int):
        found = [token] if token in known else []
    else:
        vocab = tokenizer.get_vocab()
        text = tokenizer.encode(token, add_special_tokens=False)
        # The token of unknown texts does not stand for this one.
        if len(text) == 1 and tokenizer.decode(text).strip() != token.strip():
            text = []
        found = [vocab[token]] if token in vocab else text
    if len(found) != 1:
        raise ValueError(
            f"model.extra_eos: must be tokens of {tokenizer.name_or_path}, got {shown(token)}"
            + (f", which is {len(found)} tokens" if found else "")
        )
    return found[0]


def unused_ids(directory: Path, tokenizer: Any, vocab_size: int) -> Ranges:
    """Ranges of the model's ids that are no token of its tokenizer."""
    ids = tokenizer.get_vocab().values()
    tokens = max(ids, default=-1) + 1
    if tokens > vocab_size:
        raise ValueError(
            f"{directory}: vocab_size: must be at least {tokens}, the tokens of the tokenizer, got "
            f"{vocab_size}"
        )
    return unused_ranges(ids, vocab_size)
