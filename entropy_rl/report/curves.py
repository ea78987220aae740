"""The training curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from entropy_rl.files import read_jsonl
from entropy_rl.run_directory import METRICS_FILE

CURVES_FILE = "curves.png"
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_jsonl(directory / METRICS_FILE)
    if not rows:
        raise ValueError(f"{directory}: there are no metrics to draw yet")
    steps = np.array([row["step"] for row in rows])
    window = max(1, len(rows) // 10)
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, _PANELS.items(), strict=True):
        values = np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)
        axis.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1)
        if len(rows) > window:
            axis.plot(steps[window - 1 :], running_mean(values, window), color="tab:blue", linewidth=2)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.suptitle(str(directory))
    path = directory / CURVES_FILE
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """f[n - window + 1]: means over windows, of what is known in each; NaN where nothing is.

    A step without a value is left out of the mean, not drawn as a gap of a whole window.
    """
    known = np.convolve(np.isfinite(values), np.ones(window), mode="valid")
    total = np.convolve(np.nan_to_num(values), np.ones(window), mode="valid")
    return np.divide(total, known, out=np.full(known.shape, np.nan), where=known > 0)
