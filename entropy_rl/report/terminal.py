"""Tokens on a terminal, shaded by their entropy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TextIO

FULL = 1.5  # nats, from which on the shade is the darkest
_PALE, _DARK = (255, 236, 209), (226, 106, 24)
_LEAST = 0.03  # share of the full shade below which there is none
# What a model writes must not move the cursor or change colors.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def has_colors(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is a terminal with 24-bit colors, and its user wants any (no-color.org)."""
    if environment.get("NO_COLOR") or not stream.isatty():
        return False
    return environment.get("COLORTERM", "") in ("truecolor", "24bit")


def printable(text: str) -> str:
    """A text with its control characters written out."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shaded(text: str, entropy: float, colors: bool) -> str:
    """A token as it is printed: `printable`, and with a background by its entropy.

    Args:
      text: The token.
      entropy: In nats.
      colors: Whether there is a background at all.
    """
    text = printable(text)
    share = min(1.0, max(0.0, entropy / FULL))
    if not colors or share < _LEAST:
        return text
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_PALE, _DARK, strict=True))
    begin, end = f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m", "\x1b[0m"
    # A background that goes on over the end of a line would fill the rest of it.
    return "\n".join(f"{begin}{line}{end}" if line else "" for line in text.split("\n"))


def scale() -> str:
    """What the shades mean."""
    steps = [share * FULL for share in (0.1, 0.25, 0.5, 0.75, 1)]
    return f"entropy in nats: {' '.join(shaded(f' {x:.2f} ', x, True) for x in steps)} and more"
