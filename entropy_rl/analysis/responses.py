"""Responses: tokens, their entropies, and their character spans in the text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

# Decoded from a token that ends within a character.
_INCOMPLETE = "\ufffd"
_REMEMBERED = 2**18


@dataclasses.dataclass(frozen=True)
class Response:
    """One response.

    Attributes:
      problem: Problem id; responses to one problem are not independent.
      text: The decoded text.
      spans: int32[N, 2], characters begin <= i < end of the text for each token; empty for a token
        without text, such as the end of the response.
      tokens: int32[N], token ids.
      entropy: f64[N], nats, of the distribution that each token was sampled from.
      step: Training step in which it was sampled; None outside of training.
    """

    problem: int
    text: str
    spans: np.ndarray
    tokens: np.ndarray
    entropy: np.ndarray
    step: int | None = None

    def token_at(self, places: Sequence[int]) -> np.ndarray:
        """int64[...]: the first token that covers each of the characters at these places."""
        # Ends never decrease, and a token without text ends where the previous one does.
        return np.searchsorted(self.spans[:, 1], places, side="right")


class TokenSpans:
    """Decodes tokens and maps each one to a character span.

    The span of a token is the text that it adds. Tokens that form one character together, such as
    the bytes of an emoji, all have the span of that character.

    Args:
      decode: Maps ids to text, without special tokens. The text of a token may depend on the tokens
        before it, and on those after it only within an incomplete character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._decode_few = functools.lru_cache(_REMEMBERED)(decode)

    def __call__(self, tokens: Sequence[int]) -> tuple[str, np.ndarray]:
        """Decode: (text, int32[N, 2] with begin and end of each token in it)."""
        pieces = [self._decode_few((token,)) for token in tokens]
        sizes = [1] * len(pieces)
        if "".join(pieces) != self._decode(tokens):
            pieces, sizes = self._pieces_in_context(tuple(tokens))
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
        spans = np.stack([np.append(0, ends)[:-1], ends], axis=1).astype(np.int32)
        return "".join(pieces), np.repeat(spans, sizes, axis=0)

    def _pieces_in_context(self, tokens: tuple[int, ...]) -> tuple[list[str], list[int]]:
        """Pieces of the text, and the number of tokens of each."""
        pieces, sizes = [], []
        # Windows that begin with the previous piece; whole prefixes would take quadratic time.
        start = known = 0
        for end in range(1, len(tokens) + 1):
            after = self._decode_few(tokens[start:end])
            if (
                after.endswith(_INCOMPLETE)
                and end < len(tokens)
                and end - known < _LONGEST_CHARACTER
            ):
                continue
            pieces.append(after[len(self._decode_few(tokens[start:known])) :])
            sizes.append(end - known)
            start, known = known, end
        return pieces, sizes


_LONGEST_CHARACTER = 4  # bytes in UTF-8, an upper bound of its tokens
