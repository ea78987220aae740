"""Pass@K curves as CSV and as figures."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_rl.evaluation import Curve, Evaluation
from entropy_rl.report.curves import COLORS
from entropy_rl.report.tables import csv_text
from entropy_rl.runs.jsonl import write_atomically

_STEM = "pass_at_k"
_CHARACTERS_PER_INCH, _LINE_INCHES = 13, 0.16  # of a legend in 8 pt


def curve_of(evaluation: Evaluation) -> Curve:
    """The Pass@K curve of an evaluation."""
    return {k: (*v, evaluation.pass_at_k_problems[k]) for k, v in evaluation.pass_at_k.items()}


def write_pass_at_k(directory: Path, curves: Mapping[str, Curve]) -> list[Path]:
    """Write pass_at_k.csv, pass_at_k.png and pass_at_k.svg.

    Args:
      directory: Where to write the files.
      curves: Name -> K -> (Pass@K, low, high, problems).

    Returns:
      Paths of the files; without matplotlib (the extra `report`) only the CSV.
    """
    header = ("name", "k", "pass_at_k", "low", "high", "problems")
    rows = [(name, k, *values) for name, curve in curves.items() for k, values in curve.items()]
    written = [directory / f"{_STEM}.csv"]
    write_atomically(written[0], csv_text([header, *rows]))
    try:
        figure = pass_at_k_figure(curves)
    except ImportError:
        return written
    for suffix in ("png", "svg"):
        written.append(directory / f"{_STEM}.{suffix}")
        figure.savefig(written[-1], dpi=130)
    return written


def pass_at_k_figure(
    curves: Mapping[str, Curve],
    colors: Sequence[str] = COLORS,
    dashed: Collection[str] = (),
    is_in_paper: bool = False,
) -> Any:
    """Draw Pass@K over K with bands of 95% intervals.

    Args:
      curves: As in `write_pass_at_k`.
      colors: Colors of the curves, in the same order.
      dashed: Names of the curves to draw dashed.
      is_in_paper: Take size and fonts from the style of matplotlib, and leave the title out.

    Returns:
      A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=None if is_in_paper else (6, 4), layout="constrained")
    small = None if is_in_paper else 8
    axis = figure.subplots()
    ks = sorted({k for curve in curves.values() for k in curve})
    for i, (name, curve) in enumerate(curves.items()):
        estimate, low, high, problems = zip(*curve.values(), strict=True)
        fewest, most = min(problems), max(problems)
        count = most if fewest == most else f"{fewest} to {most}"
        width = int(_CHARACTERS_PER_INCH * figure.get_figwidth())
        label = textwrap.fill(f"{name} ({count} problems)", width, break_on_hyphens=False)
        color = colors[i % len(colors)]
        style = {"color": color, "linestyle": "--" if name in dashed else "-"}
        axis.plot(list(curve), estimate, marker="o", markersize=3, label=label, **style)
        axis.fill_between(list(curve), low, high, color=color, alpha=0.2, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks], fontsize=small)
    axis.set_xlabel("K")
    axis.set_ylabel("Pass@K")
    axis.grid(alpha=0.3)
    # Below the axes, where names of any length have room; many lines make the figure higher.
    legend = figure.legend(fontsize=small, loc="outside lower center", frameon=False)
    lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts())
    figure.set_figheight(figure.get_figheight() + _LINE_INCHES * max(0, lines - 4))
    if not is_in_paper:
        axis.set_title("bands: 95% Wilson intervals over problems", fontsize=9)
    return figure
