"""Figures of a report as SVG and PDF, for papers: single panels in one style, and captions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.config.extras import install_command
from entropy_rl.report.analysis_figures import behaviors_figure, rare_map_figure
from entropy_rl.report.build import Report
from entropy_rl.report.curves import COLORS, METRIC_TITLES, PANELS, curve_figure, metric_values
from entropy_rl.report.pass_at_k import pass_at_k_figure
from entropy_rl.report.style import figure_style

_CAPTIONS_FILE = "captions.txt"


class PaperFigure(NamedTuple):
    """A figure and its caption.

    Attributes:
      figure: The `matplotlib.figure.Figure`.
      caption: What its title would say.
    """

    figure: Any
    caption: str


def write_paper_figures(directory: Path, report: Report, style: str = "column") -> list[Path]:
    """Draw training curves, Pass@K, entropies of behaviors and maps of sentences.

    Args:
      directory: Where to write the files; created if needed.
      report: The report; figures without data are left out.
      style: As in `figure_style`.

    Returns:
      Paths of the files, without captions.txt.

    Raises:
      ValueError: matplotlib is not installed, or there is no such style.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            f"figures: matplotlib is not installed; `{install_command('report')}`"
        ) from None
    with figure_style(style):
        figures = draw_paper_figures(report)
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for name, found in figures.items():
            for suffix in ("svg", "pdf"):
                written.append(directory / f"{name}.{suffix}")
                found.figure.savefig(written[-1])
    captions = "".join(f"{name}: {found.caption}\n" for name, found in figures.items())
    (directory / _CAPTIONS_FILE).write_text(captions, encoding="utf-8")
    return written


def draw_paper_figures(report: Report) -> dict[str, PaperFigure]:
    """The figures of `write_paper_figures` in the current style of matplotlib: name -> figure."""
    figures = {}
    # As on the page, a run has the same color in all figures, and its first evaluation is dashed.
    trained = {i: run for i, run in enumerate(report.runs) if run.metrics}
    metrics = {run.name: run.metrics for run in trained.values()}
    colors = [COLORS[i] for i in trained]
    for name in PANELS:
        if any(np.isfinite(metric_values(rows, name)).any() for rows in metrics.values()):
            title = METRIC_TITLES[name]
            caption = f"{title}; thin: each step, thick: mean over a tenth of the run."
            figures[f"curve_{name}"] = PaperFigure(curve_figure(metrics, name, colors), caption)
    if report.curves:
        curves = {found.label: found.curve for found in report.curves}
        dashed = [found.label for found in report.curves if not found.is_last]
        figures["pass_at_k"] = PaperFigure(
            pass_at_k_figure(
                curves, [COLORS[c.run] for c in report.curves], dashed, is_in_paper=True
            ),
            "Pass@K; bands are 95% Wilson intervals over problems, dashed lines first evaluations.",
        )
    for i, (run, analysis) in enumerate(report.analyses.items()):
        name = re.sub(r"[^A-Za-z0-9]+", "_", run)
        if f"entropy_{name}" in figures:  # "a-b" and "a_b"
            name = f"{name}_{i}"
        caption = f"mean entropy of word classes and sentences, {run}."
        figures[f"entropy_{name}"] = PaperFigure(behaviors_figure(analysis), caption)
        if analysis.rare is not None:
            base = analysis.rare.base
            caption = f"sentences of {run} and their distance to those of {base} (gray)."
            figures[f"rare_map_{name}"] = PaperFigure(rare_map_figure(analysis.rare), caption)
    return figures
