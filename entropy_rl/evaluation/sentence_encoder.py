"""Sentence vectors from an encoder in a Hugging Face directory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from entropy_rl.models import encode, load_encoder
from entropy_rl.runs.load_model import load_tokenizer

_ROWS_AT_ONCE = 64
_SHORTEST = 16


def load_embedding(directory: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """An embedding of texts: the mean of an encoder's last hidden states, with norm 1.

    Texts longer than the encoder can take are cut at its limit. They go through it in order of
    length, padded to the next of a few lengths; neither changes a vector beyond rounding.

    Args:
      directory: A model of model_type "bert" and its tokenizer, such as all-MiniLM-L6-v2.

    Returns:
      A function from n texts to f32[n, hidden_size].

    Raises:
      FileNotFoundError: A file is not there.
      ValueError: It is no such model.
    """
    config, params = load_encoder(directory)
    tokenizer = load_tokenizer(directory)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, but the model only "
            f"{config.vocab_size}"
        )
    run = jax.jit(functools.partial(encode, config))

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = [
            tokenizer.encode(text, truncation=True, max_length=config.max_position_embeddings)
            for text in texts
        ]
        vectors = np.zeros((len(rows), config.hidden_size), np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), _ROWS_AT_ONCE):
            part = order[start : start + _ROWS_AT_ONCE]
            longest = max(_SHORTEST, len(rows[part[-1]]))
            length = min(1 << (longest - 1).bit_length(), config.max_position_embeddings)
            ids = np.zeros((_ROWS_AT_ONCE, length), np.int32)
            mask = np.zeros(ids.shape, bool)
            mask[:, 0] = True  # rows that only fill up have one token
            for place, i in enumerate(part):
                ids[place, : len(rows[i])] = rows[i]
                mask[place, : len(rows[i])] = True
            vectors[part] = np.asarray(run(params, ids, mask))[: len(part)]
        return vectors

    return embed
