"""Data of the charts on the page, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_rl.analysis import Analysis, PlacedSentence, RareBehaviors
from entropy_rl.report.build import LabeledCurve
from entropy_rl.report.curves import METRIC_TITLES, metric_values, running_mean
from entropy_rl.report.reported_run import ReportedRun

POINTS = 600  # of a curve; longer runs are binned
_ROUNDING = 1e-9
_MOST_TEXT = 200  # characters of a sentence on the map


def training_panels(runs: Sequence[ReportedRun]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The panels, with a curve for each run, and the constant metrics with their values."""
    panels, constant = [], {}
    for name, title in (METRIC_TITLES | _reward_panels(runs)).items():
        known = [row[name] for run in runs for row in run.metrics if row.get(name) is not None]
        if not known:
            continue
        # Smaller differences are rounding, such as the KL of an on-policy update.
        in_all = all(
            any(row.get(name) is not None for row in run.metrics) for run in runs if run.metrics
        )
        if in_all and max(known) - min(known) < _ROUNDING and len(known) > 1:
            constant[name] = known[0] if abs(known[0]) > _ROUNDING else 0.0
            continue
        if name == "reward" and all(
            row.get(name) == row.get("correct") for run in runs for row in run.metrics
        ):
            continue
        series = [
            {"run": number} | _curve(run.metrics, name)
            for number, run in enumerate(runs)
            if any(row.get(name) is not None for row in run.metrics)
        ]
        panels.append({"title": title, "series": series})
    return panels, constant


def _reward_panels(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """Panels of the rewards that the runs log by name."""
    names = dict.fromkeys(name for run in runs for row in run.metrics for name in row)
    rewards = (name for name in names if name.startswith("reward/") and not name.endswith("_std"))
    return {name: f"mean reward {name.removeprefix('reward/')}" for name in rewards}


def _curve(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Steps, values, and running means over a tenth of the run."""
    steps = np.array([row["step"] for row in metrics], float)
    values = metric_values(metrics, name)
    window = max(1, len(values) // 10)
    smooth = np.append(np.full(window - 1, np.nan), running_mean(values, window))
    if len(steps) > POINTS:
        bins = np.array_split(np.arange(len(steps)), POINTS)
        steps = np.array([steps[part].mean().round() for part in bins])
        values = np.array([running_mean(values[part], len(part))[0] for part in bins])
        smooth = np.array([smooth[part[-1]] for part in bins])
    return {"x": steps.tolist(), "y": _short(values), "smooth": _short(smooth)}


def pass_at_k_series(curves: Sequence[LabeledCurve]) -> list[dict[str, Any]]:
    """Pass@K over K for each evaluation."""
    series = []
    for found in curves:
        estimate, low, high, problems = zip(*found.curve.values(), strict=True)
        values = {
            "y": _short(estimate),
            "low": _short(low),
            "high": _short(high),
            "problems": list(problems),
        }
        named = {"run": found.run, "label": found.label, "faint": not found.is_last}
        series.append(named | {"x": list(found.curve)} | values)
    return series


def panels_over_steps(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Panels of Pass@K over steps, for runs with at least three evaluations."""
    panels = []
    ks = sorted(
        {k for run in runs for _, found in run.evaluations.values() for k in found.pass_at_k_of_all}
    )
    for k in dict.fromkeys((*ks[:1], *ks[-1:])):
        series = []
        for number, run in enumerate(runs):
            curves = {step: run.evaluations[step][1].pass_at_k_of_all for step in run.evaluations}
            steps = [step for step in sorted(curves) if k in curves[step]]
            points = [curves[step][k] for step in steps]
            if len(points) > 2:
                y, low, high = (_short(values) for values in zip(*points, strict=True))
                series.append({"run": number, "x": steps, "y": y, "low": low, "high": high})
        if series:
            panels.append({"title": f"Pass@{k} over the steps", "series": series})
    return panels


def entropy_rows(name: str, analysis: Analysis) -> dict[str, Any]:
    """Mean entropies with intervals: groups of tokens and sentences, and what they compare to."""
    lines = [line for line in analysis.pivotal if line.against == analysis.pivotal[0].against]
    named = [(line.name, line) for line in lines]
    named += [(f"{line.name} sentences", line) for line in analysis.of_sentences]
    rows = {}
    for name_of_group, line in named:
        for label, group, is_other in (
            (name_of_group, line.group, False),
            (line.against, line.other, True),
        ):
            if group.count:
                mean, low, high = _short((group.mean, group.low, group.high))
                values = {"count": group.count, "mean": mean, "low": low, "high": high}
                rows[label] = {"label": label, "other": is_other} | values
    return {"run": name, "rows": sorted(rows.values(), key=lambda row: row["other"])}


def sentence_map(name: str, rare: RareBehaviors) -> dict[str, Any]:
    """Sentences by their two principal components, those of the base first."""
    groups = {"base": None, "common": False, "rare": True}

    def point(s: PlacedSentence) -> list[Any]:
        own = [] if s.rare is None else _short((s.entropy, s.distance))
        return [*_short((s.x, s.y)), s.text[:_MOST_TEXT], *own]

    points = {
        label: [point(s) for s in rare.placed if s.rare is kind] for label, kind in groups.items()
    }
    return {"run": name, "groups": points}


def _short(values: Any) -> list[float | None]:
    return [float(f"{x:.5g}") for x in np.asarray(values, float).tolist()]
