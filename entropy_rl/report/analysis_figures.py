"""Figures of an entropy analysis, as PNG and SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.analysis import Analysis, Contrast, Point, RareBehaviors
from entropy_rl.evaluation.compare import LEVEL
from entropy_rl.evaluation.dynamics import RunDynamics
from entropy_rl.report.curves import COLORS, METRIC_TITLES, metric_values, running_mean

_GREY, _DARK = "#B5B5B5", "#444444"
_DPI = 160
_SUFFIXES = ("png", "svg")


def write_analysis_figures(
    directory: Path, analysis: Analysis, dynamics: RunDynamics | None
) -> list[Path]:
    """Draw the entropies of behaviors, the map of sentences, and the dynamics of a run.

    Figures of an earlier analysis are removed first.

    Args:
      directory: Where to write the files.
      analysis: The analysis.
      dynamics: Dynamics of the analyzed run; None if the samples are not those of a run.

    Returns:
      Paths of the files; empty without matplotlib (the extra `report`).
    """
    for stem in ("entropy_of_behaviors", "rare_map", "dynamics"):
        for suffix in _SUFFIXES:
            (directory / f"{stem}.{suffix}").unlink(missing_ok=True)
    try:
        figures = {"entropy_of_behaviors": behaviors_figure(analysis)}
    except ImportError:
        return []
    if analysis.rare is not None:
        figures["rare_map"] = rare_map_figure(analysis.rare)
    if dynamics is not None and dynamics.metrics:
        figures["dynamics"] = _dynamics_figure(dynamics)
    written = []
    for name, figure in figures.items():
        for suffix in _SUFFIXES:
            written.append(directory / f"{name}.{suffix}")
            figure.savefig(written[-1], dpi=_DPI)
    return written


def behaviors_figure(analysis: Analysis) -> Any:
    """Draw mean entropies with intervals: word classes, reflective and rare sentences."""
    from matplotlib.figure import Figure

    pairs = analysis.of_sentences
    against = list(dict.fromkeys(line.against for line in analysis.pivotal))
    lines = [line for line in analysis.pivotal if line.against == against[0]]
    others = [next(line for line in analysis.pivotal if line.against == name) for name in against]
    bars = [(line.name, line.group, COLORS[0]) for line in lines]
    bars += [(line.against, line.other, _GREY) for line in others]
    size = (0.9 + 0.85 * len(bars) + 2.2 * len(pairs), 3.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        1, 1 + len(pairs), width_ratios=[len(bars), *[3] * len(pairs)], sharey=True
    )
    _draw_bars(axes[0], bars, "pivotal tokens", lines)
    axes[0].set_ylabel("mean entropy (nats)")
    for axis, line in zip(axes[1:], pairs, strict=True):
        two = [(line.name, line.group, COLORS[0]), (line.against, line.other, _GREY)]
        _draw_bars(axis, two, f"{line.name} sentences", [line])
    intervals = f"95% bootstrap intervals over {analysis.problems} problems"
    stars = f"* adjusted p ≤ {LEVEL} within problems, classes against {against[0]}"
    figure.supxlabel(f"{intervals};  {stars}", fontsize=8, color=_DARK)
    return figure


def _draw_bars(axis: Any, bars: Sequence[tuple], title: str, lines: Sequence[Contrast]) -> None:
    significant = {line.name for line in lines if line.p_adjusted <= LEVEL}
    for place, (name, summary, color) in enumerate(bars):
        if not summary.count:
            axis.text(place, 0, "none", ha="center", va="bottom", fontsize=8, color=_DARK)
            continue
        axis.bar(place, summary.mean, color=color, width=0.7)
        reach = [[summary.mean - summary.low], [summary.high - summary.mean]]
        if np.isfinite(reach).all():
            axis.errorbar(
                place, summary.mean, np.maximum(reach, 0), color="black", capsize=3, linewidth=1
            )
        if name in significant:
            axis.annotate(
                "*",
                (place, summary.high),
                (0, 1),
                textcoords="offset points",
                ha="center",
                fontsize=12,
            )
    labels = [f"{name.replace(' ', chr(10))}\n{summary.count:,}" for name, summary, _ in bars]
    axis.set_xticks(range(len(bars)), labels, fontsize=8)
    axis.set_xlim(-0.6, len(bars) - 0.4)
    axis.set_title(title, fontsize=10)
    axis.margins(y=0.12)
    axis.set_ylim(bottom=0)
    _clean(axis)


def rare_map_figure(rare: RareBehaviors) -> Any:
    """Draw sentences by their two principal components, and a histogram of their distances."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    base = [s for s in rare.placed if s.rare is None]
    common = [s for s in rare.placed if s.rare is False]
    found = [s for s in rare.placed if s.rare]
    for sentences, label, style in (
        (base, rare.base, {"color": _GREY, "s": 10, "alpha": 0.5}),
        (common, "common", {"color": COLORS[4], "s": 10, "alpha": 0.6}),
        (found, "rare", {"color": COLORS[1], "s": 22, "marker": "^", "alpha": 0.8}),
    ):
        places = np.array([(s.x, s.y) for s in sentences]).reshape(-1, 2)
        label = textwrap.fill(f"{label} ({len(sentences):,})", 40)
        left.scatter(*places.T, linewidths=0, label=label, **style)
    left.set_xlabel("first principal component")
    left.set_ylabel("second principal component")
    left.legend(fontsize=8, frameon=False, loc="best")
    left.set_title("sentences", fontsize=10)
    edges = _edges(rare.threshold, max(s.distance for s in (*common, *found)))
    distances = [[s.distance for s in sentences] for sentences in (common, found)]
    right.hist(distances, edges, color=[COLORS[4], COLORS[1]], stacked=True)
    right.axvline(rare.threshold, color=_DARK, linewidth=1, linestyle="--")
    right.set_xlabel("distance to the gray sentences")
    right.set_ylabel("sentences")
    right.set_title("rare: right of the line", fontsize=10)
    for axis in (left, right):
        _clean(axis)
    return figure


def _edges(threshold: float, largest: float, bins: int = 30) -> np.ndarray:
    """Edges of about `bins` bins from 0 to the largest distance, one of them at the threshold."""
    width = (largest or 1) / bins
    below = np.linspace(0, threshold, 1 + round(threshold / width))
    above = np.linspace(threshold, max(largest, threshold + width), 1 + max(1, bins - len(below)))
    return np.unique([*below, *above])


def _dynamics_figure(dynamics: RunDynamics) -> Any:
    """Draw six panels over the steps; dots are evaluations, all on the same problems."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    names = list((dynamics.training or dynamics.evaluations)[0].behaviors)
    for i, name in enumerate(names):
        style = {"color": COLORS[i % len(COLORS)], "label": name}
        _draw_points(axes[0, 0], dynamics, lambda p, n=name: p.behaviors[n].per_response, **style)
        _draw_points(axes[0, 1], dynamics, lambda p, n=name: p.behaviors[n].entropy, **style)
    axes[0, 0].set_title("behaviors per response", fontsize=10)
    axes[0, 1].set_title("mean entropy of behaviors (nats)", fontsize=10)
    axes[0, 0].legend(fontsize=7, frameon=False)
    for i, (k, curve) in enumerate(_pass_at_k(dynamics).items()):
        steps, estimate, low, high = np.array(curve).T
        color = COLORS[i % len(COLORS)]
        axes[0, 2].plot(steps, estimate, marker="o", markersize=3, color=color, label=f"Pass@{k}")
        axes[0, 2].fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes[0, 2].set_title("Pass@K (95% intervals over problems)", fontsize=10)
    if dynamics.pass_at_k:
        axes[0, 2].legend(fontsize=7, frameon=False)
    _draw_metric(axes[1, 0], dynamics, "length", METRIC_TITLES["length"])
    _draw_metric(axes[1, 1], dynamics, "entropy", METRIC_TITLES["entropy"])
    _draw_points(axes[1, 0], dynamics, lambda p: p.length, training=False, color=_DARK)
    _draw_points(axes[1, 1], dynamics, lambda p: p.entropy, training=False, color=_DARK)
    _draw_points(
        axes[1, 2], dynamics, lambda p: p.repetition, color=COLORS[0], label="repeated 4-grams"
    )
    _draw_metric(axes[1, 2], dynamics, "bonus_share", "repetition, and entropy bonus", COLORS[1])
    axes[1, 2].legend(fontsize=7, frameon=False)
    for axis in axes.flat:
        _clean(axis)
    for axis in axes[1]:
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
    note = "lines: training, mean over a tenth of the run;  dots: evaluation of fixed problems"
    figure.supxlabel(note, fontsize=8, color=_DARK)
    return figure


def _draw_points(
    axis: Any,
    dynamics: RunDynamics,
    value_of: Callable[[Point], float],
    training: bool = True,
    **style: Any,
) -> None:
    if training and dynamics.training:
        steps = np.array([point.step for point in dynamics.training])
        _draw_running(
            axis, steps, np.array([value_of(point) for point in dynamics.training]), **style
        )
    label = {} if training and dynamics.training else {"label": style.get("label")}
    steps = [point.step for point in dynamics.evaluations]
    values = [value_of(point) for point in dynamics.evaluations]
    axis.plot(steps, values, "o:", markersize=4, linewidth=1, color=style["color"], **label)


def _draw_metric(
    axis: Any, dynamics: RunDynamics, name: str, title: str, color: str = COLORS[0]
) -> None:
    steps = np.array([row["step"] for row in dynamics.metrics])
    values = metric_values(dynamics.metrics, name)
    _draw_running(
        axis, steps, values, color=color, label="Σ|ψ| / Σ|A|" if name == "bonus_share" else None
    )
    axis.set_title(title, fontsize=10)


def _draw_running(axis: Any, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    window = max(1, len(steps) // 10)
    axis.plot(steps[window - 1 :], running_mean(values, window), linewidth=1.8, **style)


def _pass_at_k(dynamics: RunDynamics) -> dict[int, list[tuple[float, ...]]]:
    """K -> (step, Pass@K, low, high) of the evaluations, for the first, middle and last K."""
    ks = sorted({k for of_step in dynamics.pass_at_k.values() for k in of_step})
    kept = sorted({ks[0], ks[len(ks) // 2], ks[-1]}) if ks else []
    return {
        k: [(step, *of_step[k]) for step, of_step in dynamics.pass_at_k.items() if k in of_step]
        for k in kept
    }


def _clean(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
