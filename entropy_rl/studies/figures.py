"""The figures of a study: Pass@K, and how entropy and length went, of every arm."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.config.study import BASE
from entropy_rl.report.curves import metric_values, running_mean
from entropy_rl.studies.analysis import Analysis, Result

Look = dict[str, str]  # what `plot` takes

_DPI = 140
_COLOURS = [f"C{i}" for i in range(10)]
_DASHES = ["-", "--", ":", "-."]  # of the first ten arms, the next ten, ...
_CURVES = {"entropy": "entropy (nats per token)", "length": "response length (tokens)"}


def write_figures(directory: Path, analysis: Analysis) -> list[str]:
    """Draws pass_at_k.png and curves.png, with bands from the lowest to the highest seed.

    Returns:
      The names of what was written; nothing without matplotlib, which is in the extra `report`, or
      data.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms: dict[str, list[Result]] = {}
    for unit, result in analysis.results.items():
        arms.setdefault(unit.arm, []).append(result)
    if not arms:
        return []
    looks = _looks(dict.fromkeys(unit.arm for unit in analysis.records))
    figures = {"pass_at_k.png": _pass_at_k(arms, looks)}
    trained = {
        arm: results for arm, results in arms.items() if all(result.metrics for result in results)
    }
    if trained:
        figures["curves.png"] = _curves(trained, looks)
    for name, figure in figures.items():
        figure.savefig(directory / name, dpi=_DPI)
        plt.close(figure)
    return list(figures)


def _looks(arms: Iterable[str]) -> dict[str, Look]:
    """Of all arms, also those without a result yet: an arm looks the same in every report of a
    study.
    """
    looks = itertools.cycle({"color": c, "linestyle": dash} for dash in _DASHES for c in _COLOURS)
    return {
        arm: {"color": "black", "linestyle": "-"} if arm == BASE else next(looks) for arm in arms
    }


def _pass_at_k(arms: Mapping[str, Sequence[Result]], looks: Mapping[str, Look]) -> Any:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for arm, results in arms.items():
        ks = sorted(set.intersection(*(set(result.evaluation.pass_at_k) for result in results)))
        values = np.array([[result.evaluation.pass_at_k[k][0] for k in ks] for result in results])
        _band(axis, ks, values, arm, looks[arm], marker=".")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks], fontsize=8)
    axis.set_xlabel("K")
    axis.set_ylabel("Pass@K")
    return _finished(figure, axis)


def _curves(arms: Mapping[str, Sequence[Result]], looks: Mapping[str, Look]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (name, title) in zip(axes, _CURVES.items(), strict=True):
        for arm, results in arms.items():
            steps = min(len(result.metrics) for result in results)
            window = max(1, steps // 10)
            of_seeds = [metric_values(result.metrics[:steps], name) for result in results]
            values = np.array([running_mean(of_seed, window) for of_seed in of_seeds])
            _band(axis, np.arange(window, steps + 1), values, arm, looks[arm])
        axis.set_xlabel("step")
        axis.set_title(f"{title}, in training", fontsize=10)
    return _finished(figure, axes[0])


def _band(
    axis: Any, x: Sequence[int], values: np.ndarray, arm: str, look: Look, marker: str | None = None
) -> None:
    """The mean over seeds, f[seeds, x], and a band from the lowest to the highest."""
    axis.plot(x, values.mean(axis=0), **look, marker=marker, label=f"{arm} ({len(values)})")
    if len(values) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axis.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axis.grid(alpha=0.3)


def _finished(figure: Any, axis: Any) -> Any:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        title="mean over seeds (how many)\nband: lowest to highest",
        alignment="left",
        fontsize=8,
        title_fontsize=8,
        frameon=False,
    )
    return figure
