"""Figures of a report as SVG and PDF, for papers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from entropy_rl.report.analysis_figures import behaviors_figure, rare_map_figure
from entropy_rl.report.build import Report
from entropy_rl.report.curves import COLORS, curves_figure
from entropy_rl.report.pass_at_k import pass_at_k_figure


def write_paper_figures(directory: Path, report: Report) -> list[Path]:
    """Draw training curves, Pass@K, entropies of behaviors and maps of sentences.

    Args:
      directory: Where to write the files; created if needed.
      report: The report; figures without data are left out.

    Returns:
      Paths of the files.

    Raises:
      ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "figures: matplotlib is not installed (pip install 'entropy_rl[report]')"
        ) from None
    figures = draw_paper_figures(report)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        for suffix in ("svg", "pdf"):
            written.append(directory / f"{name}.{suffix}")
            figure.savefig(written[-1])
    return written


def draw_paper_figures(report: Report) -> dict[str, Any]:
    """The figures of `write_paper_figures`: name -> `matplotlib.figure.Figure`."""
    figures = {}
    # As on the page, a run has the same color in all figures, and its first evaluation is dashed.
    trained = {i: run for i, run in enumerate(report.runs) if run.metrics}
    if trained:
        metrics = {run.name: run.metrics for run in trained.values()}
        figures["curves"] = curves_figure(metrics, [COLORS[i] for i in trained])
    if report.curves:
        curves = {found.label: found.curve for found in report.curves}
        dashed = [found.label for found in report.curves if not found.is_last]
        figures["pass_at_k"] = pass_at_k_figure(
            curves, [COLORS[c.run] for c in report.curves], dashed
        )
    for i, (name, analysis) in enumerate(report.analyses.items()):
        name = re.sub(r"[^A-Za-z0-9]+", "_", name)
        if f"entropy_{name}" in figures:  # "a-b" and "a_b"
            name = f"{name}_{i}"
        figures[f"entropy_{name}"] = behaviors_figure(analysis)
        if analysis.rare is not None:
            figures[f"rare_map_{name}"] = rare_map_figure(analysis.rare)
    return figures
