"""Tables for papers: LaTeX with booktabs, and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from types import MappingProxyType

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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([*map(_csv_text, row)] for row in (header, *rows))
    return text.getvalue()


def _csv_text(cell: str) -> str:
    return cell if _NUMERIC_CELL.fullmatch(cell) else csv_cell(cell)
