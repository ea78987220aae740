"""The figures of a report as SVG and PDF."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from entropy_rl.report.analysis_figures import behaviors_figure, rare_map_figure
from entropy_rl.report.curves import COLOURS, curves_figure
from entropy_rl.report.gathered import Report
from entropy_rl.report.pass_at_k import pass_at_k_figure


def write_paper_figures(directory: Path, report: Report) -> list[Path]:
    """Draws curves, Pass@K, entropies of behaviors and maps of sentences, as far as the runs have
    them.

    Args:
      directory: Where; made if it is not there.
      report: The report.

    Returns:
      What was written.

    Raises:
      ValueError: Without matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("figures: need matplotlib; `pip install 'entropy_rl[report]'`") from None
    figures = draw_paper_figures(report)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        for suffix in ("svg", "pdf"):
            written.append(directory / f"{name}.{suffix}")
            figure.savefig(written[-1])
    return written


def draw_paper_figures(report: Report) -> dict[str, Any]:
    """Name -> figure of matplotlib, those of `write_paper_figures`."""
    figures = {}
    # A run has the color of its place in all figures, and its first evaluation is dashed, as on the
    # page.
    trained = {i: run for i, run in enumerate(report.runs) if run.metrics}
    if trained:
        metrics = {run.name: run.metrics for run in trained.values()}
        figures["curves"] = curves_figure(metrics, [COLOURS[i] for i in trained])
    if report.curves:
        curves = {found.label: found.curve for found in report.curves}
        dashed = [found.label for found in report.curves if not found.is_last]
        figures["pass_at_k"] = pass_at_k_figure(
            curves, [COLOURS[c.run] for c in report.curves], dashed
        )
    for i, (name, analysis) in enumerate(report.analyses.items()):
        name = re.sub(r"[^A-Za-z0-9]+", "_", name)
        if f"entropy_{name}" in figures:  # "a-b" and "a_b"
            name = f"{name}_{i}"
        figures[f"entropy_{name}"] = behaviors_figure(analysis)
        if analysis.rare is not None:
            figures[f"rare_map_{name}"] = rare_map_figure(analysis.rare)
    return figures
