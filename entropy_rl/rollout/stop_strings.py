"""Stop strings: a completion ends with the first token after which its text contains one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entropy_rl.config.checks import require

# A tokenizer may drop a leading space, or decode a partial character differently.
_MARGIN = 4


class StopStrings:
    """A `StopRule` that searches decoded text for stop strings.

    Args:
      tokenizer: Decodes without special tokens.
      strings: Non-empty strings.
      path: Place of the strings in the config, for errors.

    Attributes:
      overlap: Number of tokens before the new ones in which a stop string may begin: each holds at
        least one byte of it.

    Raises:
      ValueError: If there is none, or one could never occur (see `check_stop_strings`).
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str], path: str = "stop"):
        check_stop_strings(tokenizer, strings, path)
        require(bool(strings), path, strings, "at least one text")
        self._tokenizer, self._strings = tokenizer, tuple(strings)
        self.overlap = max(len(string.encode()) for string in strings) + _MARGIN

    def __call__(self, ids: Sequence[int]) -> int | None:
        """Return the length of the shortest prefix that contains a stop string, or None."""
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


def stop_rule(
    tokenizer: Any, strings: Sequence[str], path: str = "rollout.stop"
) -> StopStrings | None:
    """Make the `StopRule` of the strings; None without any.

    Raises:
      ValueError: If one of the strings could never occur; `path` is its place in the config.
    """
    return StopStrings(tokenizer, strings, path) if strings else None


def check_stop_strings(tokenizer: Any, strings: Sequence[str], path: str = "stop") -> None:
    """Check that stop strings can occur in decoded text.

    Special tokens are never in the text of a completion, and a tokenizer without bytes for unknown
    text cannot write every character.

    Args:
      tokenizer: Decodes without special tokens.
      strings: The strings.
      path: Of the setting, for the error.

    Raises:
      ValueError: If one could never occur.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special and token.content}
    require(not isinstance(strings, str), path, strings, "a list of texts")
    letters = None
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"{path}: must be texts that are not empty, got {string!r}")
        found = sorted(token for token in special if token in string)
        if found:
            raise ValueError(
                f"{path}: must be text that can occur in a completion, got {string!r}: the special "
                f"token {found[0]} is never in the text; name it in model.extra_eos"
            )
        if not hasattr(tokenizer, "get_vocab") or _is_written(tokenizer, string):
            continue
        letters = letters or _letters(tokenizer)
        missing = sorted(set(string) - letters)
        if missing:
            raise ValueError(
                f"{path}: must be text that can occur in a completion, got {string!r}: the "
                f"tokenizer cannot write {', '.join(map(repr, missing))}"
            )


def _is_written(tokenizer: Any, string: str) -> bool:
    """Whether a string comes back from its own tokens, alone or inside a text."""
    try:
        texts = (string, f"a{string}a", f" {string} ")
        coded = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
        return any(string in tokenizer.decode(ids, skip_special_tokens=True) for ids in coded)
    except (TypeError, UnicodeError):  # a lone surrogate
        return False


def _letters(tokenizer: Any) -> set[str]:
    """Return the characters of all tokens' texts, alone and behind another token."""
    letters: set[str] = set()
    for token in tokenizer.get_vocab().values():
        for ids in ([token], [token, token]):
            letters.update(tokenizer.decode(ids, skip_special_tokens=True))
    return letters
