"""Tables as CSV, as Markdown, and as LaTeX with booktabs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Any

from entropy_rl.escape import csv_cell

_SPECIAL = MappingProxyType(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "`": r"\textasciigrave{}",
        "±": r"$\pm$",
        "≤": r"$\le$",
    }
)
_NUMBER = r"[+-]?[\d.]+(e[+-]?\d+)?"
_NUMERIC_CELL = re.compile(rf"-|{_NUMBER}( \[{_NUMBER}, {_NUMBER}\])?")
_MINUS = re.compile(r"(?<!\w)-(?=[\d.])")


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    r"""Return a `table` with booktabs rules; needs \usepackage{booktabs}.

    Args:
      header: The headings.
      rows: The cells; the first column is aligned to the left, the others to the right.
      caption: The caption.
    """
    lines = [" & ".join(map(latex_text, row)) + r" \\" for row in (header, *rows)]
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Escape a text; minus signs of numbers become those of mathematics."""
    escaped = "".join(_SPECIAL.get(char, char) for char in text)
    return _MINUS.sub("$-$", escaped)


def csv_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the cells as CSV; all but numbers, their intervals and "-" pass through `csv_cell`."""
    return csv_text([header, *rows], lambda c: c if _NUMERIC_CELL.fullmatch(c) else csv_cell(c))


def csv_text(rows: Iterable[Iterable[Any]], cell: Callable[[Any], Any] = csv_cell) -> str:
    """Return rows as CSV, all values passed through `cell`; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(cell, row) for row in rows)
    return text.getvalue()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the cells as Markdown, each in one line; an empty text without rows."""
    if not rows:
        return ""
    escaped = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        for row in (header, ["---"] * len(header), *rows)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
