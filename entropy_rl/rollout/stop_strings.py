"""Stop strings: a completion ends with the token with which its text comes to contain one of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A tokenizer may drop a space at the start of what it decodes, or join half a character that was
# cut.
_MARGIN = 4


class StopStrings:
    """The rule that a sampler applies.

    Args:
      tokenizer: Decodes without special tokens.
      strings: The strings, none of them empty.

    Attributes:
      overlap: Tokens before the new ones that a stop string may begin in: each has a byte of it at
        least.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]):
        self._tokenizer, self._strings = tokenizer, tuple(strings)
        self.overlap = max(len(string.encode()) for string in strings) + _MARGIN

    def __call__(self, ids: Sequence[int]) -> int | None:
        """The fewest of these tokens whose text contains a stop string; None if all of them do
        not.
        """
        if not self._found(ids):
            return None
        low, high = 0, len(ids)  # the first `low` tokens do not contain one, the first `high` do
        while high - low > 1:
            middle = (low + high) // 2
            if self._found(ids[:middle]):
                high = middle
            else:
                low = middle
        return high

    def _found(self, ids: Sequence[int]) -> bool:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return any(string in text for string in self._strings)


def stop_rule(tokenizer: Any, strings: Sequence[str]) -> StopStrings | None:
    """The rule of some stop strings; None if there are none."""
    return StopStrings(tokenizer, strings) if strings else None
