"""The training curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.runs.stored import METRICS_FILE, read_metrics

CURVES_FILE = "curves.png"
# Six of Okabe & Ito's, which people with any color vision can tell apart, and two more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B4FBB", "#77777C")
_PANELS = {
    "correct": "share of correct completions",
    "length": "response length (tokens)",
    "entropy": "entropy (nats per token)",
    "bonus_share": "entropy bonus, |ψ| / |A|",
    "truncated": "cut off at the limit",
    "grad_norm": "gradient norm before clipping",
}


def write_curves(directory: Path) -> Path:
    """Draws metrics.jsonl of a run: each step thin, a running mean over a tenth of the run thick.

    Args:
      directory: The run.

    Returns:
      The picture's path.

    Raises:
      ImportError: Without matplotlib, which is in the extra `report`.
      ValueError: If the run has no step yet.
    """
    rows = read_metrics(directory / METRICS_FILE)
    if not rows:
        raise ValueError(f"{directory}: there are no metrics to draw yet")
    figure = curves_figure({str(directory): rows})
    path = directory / CURVES_FILE
    figure.savefig(path, dpi=130)
    return path


def curves_figure(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], colors: Sequence[str] = COLOURS
) -> Any:
    """Draws the metrics of runs over one another.

    Args:
      runs: Name -> the numbers of its steps, in order.
      colors: Of the runs, in the same order.

    Returns:
      A figure of matplotlib, which no window knows of.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    for axis, (name, title) in zip(axes.flat, _PANELS.items(), strict=True):
        for i, (label, rows) in enumerate(runs.items()):
            style = {"color": colors[i % len(colors)]}
            steps, window = np.array([row["step"] for row in rows]), max(1, len(rows) // 10)
            values = metric_values(rows, name)
            axis.plot(steps, values, alpha=0.3, linewidth=1, **style)
            axis.plot(
                steps[window - 1 :], running_mean(values, window), linewidth=2, label=label, **style
            )
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    if len(runs) > 1:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    else:
        figure.suptitle(next(iter(runs)))
    return figure


def metric_values(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """f[steps]: a metric of each step; NaN where a step has none, as one in which the critic
    learns alone.
    """
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """f[n - window + 1]: means over windows, of what is known in each; NaN where nothing is.

    A step without a value is left out of the mean, not drawn as a gap of a whole window.
    """
    known = np.convolve(np.isfinite(values), np.ones(window), mode="valid")
    total = np.convolve(np.nan_to_num(values), np.ones(window), mode="valid")
    return np.divide(total, known, out=np.full(known.shape, np.nan), where=known > 0)
