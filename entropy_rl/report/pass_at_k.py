"""Pass@K over K as numbers and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from entropy_rl.evaluation import Evaluation
from entropy_rl.files import write_atomically

_STEM = "pass_at_k"


def write_pass_at_k(directory: Path, evaluations: Mapping[str, Evaluation]) -> list[Path]:
    """Writes pass_at_k.csv, and with matplotlib pass_at_k.png and pass_at_k.svg.

    Args:
      directory: Where.
      evaluations: Name -> evaluation.

    Returns:
      What was written; without matplotlib, which is in the extra `report`, only the numbers.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["name", "k", "pass_at_k", "low", "high", "problems"])
    for name, evaluation in evaluations.items():
        for k, values in evaluation.pass_at_k.items():
            writer.writerow([name, k, *values, evaluation.pass_at_k_problems[k]])
    written = [directory / f"{_STEM}.csv"]
    write_atomically(written[0], table.getvalue())
    try:
        import matplotlib
    except ImportError:
        return written
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, evaluation in evaluations.items():
        ks = list(evaluation.pass_at_k)
        estimate, low, high = zip(*evaluation.pass_at_k.values(), strict=True)
        (line,) = axis.plot(ks, estimate, marker="o", markersize=3, label=name)
        axis.fill_between(ks, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks], fontsize=8)
    axis.set_xlabel("K")
    axis.set_ylabel("Pass@K")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    first = next(iter(evaluations.values()))
    title = f"{first.problems} problems x {first.samples} samples; bands: 95% over problems"
    axis.set_title(title, fontsize=10)
    for suffix in ("png", "svg"):
        written.append(directory / f"{_STEM}.{suffix}")
        figure.savefig(written[-1], dpi=130)
    plt.close(figure)
    return written
