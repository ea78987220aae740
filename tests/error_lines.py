"""Comparison of error lines with expected ones that leave out long lists."""

import re


def says(line: str, expected: str) -> bool:
    """Whether a line starts with `expected`, in which "..." stands for any text."""
    return re.match(re.escape(expected).replace(re.escape("..."), ".*"), line) is not None
