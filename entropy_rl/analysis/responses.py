"""A response: its tokens, their entropies, and which part of the text each token is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

# Half a character, of a token that ends within one.
_INCOMPLETE = "\ufffd"
_REMEMBERED = 2**18


@dataclasses.dataclass(frozen=True)
class Response:
    """One response.

    Attributes:
      problem: Number of the problem: responses to one problem are not independent of one another.
      text: The decoded text.
      spans: int32[N, 2], the characters begin <= i < end of the text that each token stands for;
        empty for a token without text, such as that which ends the response.
      tokens: int32[N], their ids.
      entropy: f64[N], nats, of the distribution that each token was drawn from.
      step: Of the training step it was drawn in; None if it was not.
    """

    problem: int
    text: str
    spans: np.ndarray
    tokens: np.ndarray
    entropy: np.ndarray
    step: int | None = None

    def token_at(self, places: Sequence[int]) -> np.ndarray:
        """int64[...]: the first token that covers each of the characters at these places."""
        # Ends never fall, and a token without text ends where the one before it does.
        return np.searchsorted(self.spans[:, 1], places, side="right")


class TokenSpans:
    """Finds the text of tokens, and which characters of it each token stands for.

    A token stands for what the text gains by it. Tokens that only together make a character, as the
    bytes of an emoji may do, all stand for that character.

    Args:
      decode: From ids to text, special tokens left out. What it makes of a token may depend on
        those before, as where words are joined by spaces, and on those after only for a character
        that is not complete.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._decode_few = functools.lru_cache(_REMEMBERED)(decode)

    def __call__(self, tokens: Sequence[int]) -> tuple[str, np.ndarray]:
        """(The text, int32[N, 2] with begin and end of each token in it)."""
        pieces = [self._decode_few((token,)) for token in tokens]
        sizes = [1] * len(pieces)
        if "".join(pieces) != self._decode(tokens):
            pieces, sizes = self._pieces_in_context(tuple(tokens))
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
        spans = np.stack([np.append(0, ends)[:-1], ends], axis=1).astype(np.int32)
        return "".join(pieces), np.repeat(spans, sizes, axis=0)

    def _pieces_in_context(self, tokens: tuple[int, ...]) -> tuple[list[str], list[int]]:
        """Pieces of the text, and how many tokens stand for each."""
        pieces, sizes = [], []
        # Windows that begin with the piece before: whole prefixes would take quadratic time.
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


_LONGEST_CHARACTER = 4  # bytes, and so tokens at most
