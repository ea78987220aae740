"""Text for the terminal: aligned tables, and tokens shaded by entropy."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TextIO

from entropy_rl.escape import printable

FULL = 1.5  # nats of the darkest shade
_PALE, _DARK = (255, 236, 209), (226, 106, 24)
_LEAST = 0.03  # fraction of `FULL` below which a token is not shaded


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells in columns: the first column to the left, all others to the right."""
    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def interval_text(low: float, high: float, form: str = ".3f") -> str:
    """Format an interval; it is unknown where too few problems have values."""
    return f"[{low:{form}}, {high:{form}}]" if math.isfinite(high - low) else "[unknown]"


def has_colors(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is a terminal with 24-bit colors and NO_COLOR is unset (no-color.org)."""
    if environment.get("NO_COLOR") or not stream.isatty():
        return False
    return environment.get("COLORTERM", "") in ("truecolor", "24bit")


def shade(entropy: float) -> tuple[int, int, int] | None:
    """Return the background color, 0 to 255, of a token with that entropy; None for none."""
    share = min(1.0, max(0.0, entropy / FULL))
    if share < _LEAST:
        return None
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_PALE, _DARK, strict=True))
    return red, green, blue


def shaded(text: str, entropy: float, colors: bool) -> str:
    """Format a token for printing: `printable`, with a background color that shows its entropy.

    Args:
      text: The token.
      entropy: Its entropy, nats.
      colors: Whether to add a background color.
    """
    text, color = printable(text), shade(entropy)
    if not colors or color is None:
        return text
    red, green, blue = color
    begin, end = f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m", "\x1b[0m"
    # Reset at the end of each line: otherwise the background fills the rest of the line.
    return "\n".join(f"{begin}{line}{end}" if line else "" for line in text.split("\n"))


def observed(text: str, colors: bool) -> str:
    """Format a token of an observation: `printable`, faint, with a mark before each line."""
    lines = printable(text).split("\n")
    if colors:
        lines = [f"\x1b[2m{line}\x1b[0m" if line else "" for line in lines]
    return "\n>".join(lines)


def scale() -> str:
    """The legend of the shades."""
    steps = [share * FULL for share in (0.1, 0.25, 0.5, 0.75, 1)]
    return f"entropy in nats: {' '.join(shaded(f' {x:.2f} ', x, True) for x in steps)} and more"
