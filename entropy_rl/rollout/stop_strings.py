"""Stop strings: a completion ends with the first token after which its text contains one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# A tokenizer may drop a leading space, or decode a partial character differently.
_MARGIN = 4


class StopStrings:
    """A `StopRule` that searches decoded text for stop strings.

    Args:
      tokenizer: Decodes without special tokens.
      strings: Non-empty strings.

    Attributes:
      overlap: Number of tokens before the new ones in which a stop string may begin: each holds at
        least one byte of it.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]):
        self._tokenizer, self._strings = tokenizer, tuple(strings)
        self.overlap = max(len(string.encode()) for string in strings) + _MARGIN

    def __call__(self, ids: Sequence[int]) -> int | None:
        """Returns the length of the shortest prefix that contains a stop string, or None."""
        if not self._found(ids):
            return None
        low, high = 0, len(ids)  # the prefix of `low` tokens contains none, that of `high` does
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
    """Makes the `StopRule` of the strings; None without any."""
    return StopStrings(tokenizer, strings) if strings else None
