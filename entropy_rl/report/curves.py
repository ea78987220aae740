"""Training curves of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.runs.stored import METRICS_FILE, read_metrics

CURVES_FILE = "curves.png"
# Six colors of Okabe and Ito, distinguishable with any color vision, and two more.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B4FBB", "#77777C")
METRIC_TITLES = {
    "correct": "share of correct responses",
    "reward": "mean reward",
    "entropy": "entropy (nats per token)",
    "length": "response length (tokens)",
    "bonus_share": "entropy bonus, Σ|ψ| / Σ|A|",
    "kl_sampler": "KL(sampler ‖ current), k3",
    "kl_reference": "KL to the starting policy",
    "clip_low": "share of tokens clipped below",
    "clip_high": "share of tokens clipped above",
    "truncated": "share of truncated responses",
    "groups_all_correct": "groups all correct",
    "groups_none_correct": "groups none correct",
    "grad_norm": "gradient norm before clipping",
    "loss": "loss",
}
PANELS = ("correct", "length", "entropy", "bonus_share", "truncated", "grad_norm")


def write_curves(directory: Path) -> Path:
    """Draw the metrics of a run: every step thin, a running mean over a tenth of the run thick.

    Args:
      directory: The run.

    Returns:
      Path of the PNG file.

    Raises:
      ImportError: matplotlib is not installed (the extra `report`).
      ValueError: The run has no metrics yet.
    """
    rows = read_metrics(directory / METRICS_FILE)
    if not rows:
        raise ValueError(f"{directory}: has no metrics yet")
    figure = curves_figure({str(directory): rows})
    path = directory / CURVES_FILE
    figure.savefig(path, dpi=130)
    return path


def curves_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Draw the metrics of several runs in the same axes.

    Args:
      runs: Name -> the metrics of its steps, in order.

    Returns:
      A `matplotlib.figure.Figure`, not managed by pyplot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    for axis, name in zip(axes.flat, PANELS, strict=True):
        _draw_metric(axis, runs, name, COLORS)
        axis.set_title(METRIC_TITLES[name], fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    if len(runs) > 1:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    else:
        figure.suptitle(next(iter(runs)))
    return figure


def curve_figure(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], name: str, colors: Sequence[str] = COLORS
) -> Any:
    """Draw one metric of several runs as a panel of a paper, in the style of matplotlib.

    Args:
      runs: As in `curves_figure`.
      name: One of `METRIC_TITLES`.
      colors: Colors of the runs, in the same order.

    Returns:
      A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axis = figure.subplots()
    _draw_metric(axis, runs, name, colors)
    axis.set_xlabel("step")
    axis.set_ylabel(METRIC_TITLES[name])
    if len(runs) > 1:
        axis.legend()
    return figure


def _draw_metric(
    axis: Any,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    name: str,
    colors: Sequence[str],
) -> None:
    for i, (label, rows) in enumerate(runs.items()):
        color = colors[i % len(colors)]
        steps, window = np.array([row["step"] for row in rows]), max(1, len(rows) // 10)
        values = metric_values(rows, name)
        axis.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        mean = running_mean(values, window)
        axis.plot(steps[window - 1 :], mean, color=color, linewidth=2, label=label)
    axis.grid(alpha=0.3)
    axis.xaxis.get_major_locator().set_params(integer=True)


def metric_values(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """f[steps]: a metric over steps; NaN for steps without it, such as those of critic warm-up."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """f[n - window + 1]: means over windows, ignoring NaN; NaN where a window holds only NaN.

    Ignoring a missing step avoids a gap of a whole window in the curve.
    """
    is_known = np.isfinite(values)
    known = _window_sums(is_known.astype(float), window)
    total = _window_sums(np.where(is_known, values, 0.0), window)
    return np.divide(total, known, out=np.full(known.shape, np.nan), where=known > 0)


def _window_sums(values: np.ndarray, window: int) -> np.ndarray:
    """f[n - window + 1]: sums over windows, in a time that does not depend on their size.

    A window is the end of a block of as many values and the beginning of the next one. Differences
    of cumulative sums over all values would have the rounding errors of the largest.
    """
    blocks = np.pad(values, (0, -len(values) % window)).reshape(-1, window)
    to_here = blocks.cumsum(axis=1).ravel()
    from_here = blocks[:, ::-1].cumsum(axis=1)[:, ::-1].ravel()
    first = np.arange(len(values) - window + 1)
    last = first + window - 1
    return np.where(first % window == 0, to_here[last], from_here[first] + to_here[last])
