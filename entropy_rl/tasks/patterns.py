"""Matching of regular expressions in the worker processes of a pool."""

from __future__ import annotations

import functools
import re


def matches(pattern: str, text: str) -> bool:
    """Whether a whole text matches a pattern, in which `.` matches line breaks too."""
    return compiled(pattern).fullmatch(text) is not None


@functools.lru_cache(maxsize=64)
def compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern as `matches` uses it.

    Raises:
      re.error: It is no regular expression.
    """
    return re.compile(pattern, re.DOTALL)
