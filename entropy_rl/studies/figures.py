"""Figures of a study: Pass@K; entropy, length and bonus share in training, by arm."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.config.study import BASE
from entropy_rl.report.curves import METRIC_TITLES, running_mean
from entropy_rl.studies.analysis import StudyAnalysis
from entropy_rl.studies.measures import CURVES, UnitResult

Style = dict[str, str]  # keyword arguments of `Axes.plot`

_DPI = 140
_COLORS = [f"C{i}" for i in range(10)]
_DASHES = ["-", "--", ":", "-."]  # one for each ten arms


def write_figures(directory: Path, analysis: StudyAnalysis) -> list[str]:
    """Draw pass_at_k and curves as PNG and PDF, with bands from the lowest to the highest seed.

    Returns:
      Names of the PNG files; empty without data or without matplotlib (the extra `report`).
    """
    try:
        import matplotlib
    except ImportError:
        return []

    arms: dict[str, list[UnitResult]] = {}
    for unit, result in analysis.results.items():
        arms.setdefault(unit.arm, []).append(result)
    if not arms:
        return []
    styles = _styles(dict.fromkeys(unit.arm for unit in analysis.records))
    figures = {"pass_at_k.png": _pass_at_k(arms, styles)}
    trained = {
        arm: results for arm, results in arms.items() if all(result.metrics for result in results)
    }
    if trained:
        figures["curves.png"] = _curves(trained, styles)
    for name, figure in figures.items():
        figure.savefig(directory / name, dpi=_DPI)
        with matplotlib.rc_context({"pdf.fonttype": 42}):  # fonts that publishers accept
            figure.savefig((directory / name).with_suffix(".pdf"))
    return list(figures)


def _styles(arms: Iterable[str]) -> dict[str, Style]:
    """Assign styles to all arms, with results or without: an arm keeps its style in all reports."""
    styles = itertools.cycle({"color": c, "linestyle": dash} for dash in _DASHES for c in _COLORS)
    return {
        arm: {"color": "black", "linestyle": "-"} if arm == BASE else next(styles) for arm in arms
    }


def _pass_at_k(arms: Mapping[str, Sequence[UnitResult]], styles: Mapping[str, Style]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for arm, results in arms.items():
        curves = [result.evaluation.pass_at_k_of_all for result in results]
        ks = sorted(set.intersection(*map(set, curves)))
        values = np.array([[curve[k][0] for k in ks] for curve in curves])
        _draw_mean(axis, ks, values, arm, styles[arm], marker=".")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks], fontsize=8)
    axis.set_xlabel("K")
    axis.set_ylabel("Pass@K")
    return _add_legend(figure, axis)


def _curves(arms: Mapping[str, Sequence[UnitResult]], styles: Mapping[str, Style]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(CURVES), 4.2), layout="constrained")
    axes = figure.subplots(1, len(CURVES))
    for axis, name in zip(axes, CURVES, strict=True):
        for arm, results in arms.items():
            steps = min(len(result.metrics[name]) for result in results)
            window = max(1, steps // 10)
            values = np.array([running_mean(r.metrics[name][:steps], window) for r in results])
            _draw_mean(axis, np.arange(window, steps + 1), values, arm, styles[arm])
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(f"{METRIC_TITLES[name]}, in training", fontsize=10)
    return _add_legend(figure, axes[0])


def _draw_mean(
    axis: Any,
    x: Sequence[int],
    values: np.ndarray,
    arm: str,
    style: Style,
    marker: str | None = None,
) -> None:
    """Draw the mean of f[seeds, x] over seeds, and a band from the lowest to the highest."""
    axis.plot(x, values.mean(axis=0), **style, marker=marker, label=f"{arm} ({len(values)})")
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.grid(alpha=0.3)


def _add_legend(figure: Any, axis: Any) -> Any:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        title="mean over seeds (count)\nband: lowest to highest",
        alignment="left",
        fontsize=8,
        title_fontsize=8,
        handlelength=3.5,  # solid and dashed lines look alike in shorter ones
        frameon=False,
    )
    return figure
