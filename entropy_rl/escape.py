"""Escape texts of data sets, models and configs before they reach a terminal or a spreadsheet."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any, TextIO

# Controls but tab and line feed, line separators, marks that reorder text, lone surrogates,
# what XML does not allow, tags.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
_FORMULA = ("=", "+", "-", "@", "\t")


def printable(text: str) -> str:
    """Write out the characters that would move a cursor, change colors or reorder text.

    Args:
      text: Any text; its line feeds and tabs stay.

    Returns:
      The text with escapes such as `\\x1b`; it can be encoded as UTF-8.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(text: str, file: TextIO | None = None) -> None:
    """Print a text with its control characters written out, at once.

    Args:
      text: Any text.
      file: Where to, such as `sys.stderr`; None for stdout. What cannot be written to stderr is
        lost: a run must not end because its terminal, or the `tee` behind it, has.
    """
    lost = (OSError,) if file is not None and file is sys.stderr else ()
    with contextlib.suppress(*lost):
        print(printable(text), file=file, flush=True)


def csv_cell(value: Any) -> Any:
    """A cell that a spreadsheet does not run as a formula.

    Args:
      value: A text or any other value.

    Returns:
      A printable text, behind an apostrophe if it begins like a formula; other values unchanged.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
