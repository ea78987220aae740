"""Sentence embeddings from a user function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from entropy_rl.config.registry import import_object


def load_embedding(reference: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Import a sentence encoder and normalize its vectors.

    Args:
      reference: `module:function` of a function (list of n texts) -> array [n, d] of finite
        numbers, such as the `encode` of a sentence-transformers model.

    Returns:
      A function from n texts to f32[n, d], rows of norm 1 (0 for a zero vector).

    Raises:
      ValueError: If it cannot be imported or is not callable. The returned function raises it if
        the encoder fails or returns something else.
    """
    if ":" not in reference:
        raise ValueError(f"encoder: must be module:function, got {reference!r}")
    function = import_object("encoder", reference)
    if not callable(function):
        raise ValueError(f"encoder: must be a function, got {reference} = {function!r}")

    def embed(texts: Sequence[str]) -> np.ndarray:
        try:
            vectors = np.asarray(function(list(texts)), np.float32)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"encoder: {reference} failed: {type(error).__name__}: {reason}"
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(
                f"encoder: {reference} must return an array [{len(texts)}, d], one vector per "
                f"text, got shape {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise ValueError(f"encoder: {reference} must return finite numbers, got NaN or inf")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms > 0, norms, 1)

    return embed
