"""Runs as one page of HTML: what is shown is gathered here, how it looks stands in template/."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.analysis import Analysis, analyse, annotate, compile_patterns, word_patterns
from entropy_rl.analysis.contrasts import Contrast
from entropy_rl.evaluation import Comparison, Evaluation, compare_runs
from entropy_rl.files import finite
from entropy_rl.report.analysis import conclusions
from entropy_rl.report.comparison import COMPARISON_NOTES, comparison_header, comparison_tables
from entropy_rl.report.curves import running_mean
from entropy_rl.report.evaluations import evaluation_rows
from entropy_rl.report.pass_at_k import curve_of
from entropy_rl.report.reported_run import ReportedRun, flat
from entropy_rl.report.samples import LONGEST, Limits, Samples, read_some
from entropy_rl.version import __version__

_TEMPLATE = Path(__file__).parent / "template"
_PANELS = {
    "correct": "share of correct responses",
    "reward": "mean reward",
    "entropy": "entropy (nats per token)",
    "length": "response length (tokens)",
    "bonus_share": "entropy bonus, Σ|ψ| / Σ|A|",
    "kl_sampler": "KL(sampler ‖ current), k3",
    "kl_reference": "KL to the starting policy",
    "clip_low": "share of tokens clipped below",
    "clip_high": "share of tokens clipped above",
    "truncated": "share cut off at the limit",
    "groups_all_correct": "groups all correct",
    "groups_none_correct": "groups none correct",
    "grad_norm": "gradient norm before clipping",
    "loss": "loss",
}
_NOTHING = "\u2013"
_POINTS = 600  # of a curve; of longer runs, means over steps
_ROUNDING = 1e-9
_ANALYSED_TOKENS = 100_000  # in all


@dataclasses.dataclass(frozen=True)
class SampleSource:
    """Where samples of a run lie."""

    run: int  # its number
    label: str
    directory: Path


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page is made of, and the figures for a paper too.

    Attributes:
      runs: The runs.
      curves: Of each evaluation on the page, by what it is called: (number of the run, whether it is the last
        one of it, K -> Pass@K).
      comparison: Of two runs, or of the first and last evaluation of one; a text says why there is none.
      arms: What is compared.
      samples: Of each source.
      analyses: Of the runs with samples, by their names.
    """

    runs: list[ReportedRun]
    curves: dict[str, tuple[int, bool, Mapping[int, tuple]]]
    comparison: Comparison | str | None
    arms: list[str]
    samples: list[tuple[SampleSource, Samples]]
    analyses: dict[str, Analysis]


def gather_report(
    runs: Sequence[ReportedRun],
    *,
    rows: int,
    tokens: int,
    words: Mapping[str, Sequence[str]],
    reflective: Sequence[str],
) -> Report:
    """Reads and computes what a report shows.

    Args:
      runs: One or more.
      rows: Responses to read, of all runs together.
      tokens: Their tokens, about.
      words: Classes of pivotal tokens, as of `analyze`.
      reflective: Expressions of reflective sentences, as of `analyze`.

    Raises:
      ValueError: A file cannot be read.
    """
    curves = {}
    for number, run in enumerate(runs):
        for step in sorted({min(run.evaluations), max(run.evaluations)} if run.evaluations else ()):
            label = f"{run.name}, step {step}" if run.is_training else run.name
            curves[label] = (number, step == max(run.evaluations), curve_of(run.evaluations[step][1]))
    comparison, arms = _compare(runs)
    sources = _sources(runs)
    share = max(1, len(sources))
    limits = Limits(max(1, rows // share), tokens // share, _ANALYSED_TOKENS // len(runs))
    samples = []
    for source in sources:
        run = runs[source.run]
        config = run.trained_by
        samples.append((source, read_some(source.directory, limits, config, _temperature(run, source))))
    patterns, expressions = word_patterns(words), compile_patterns(reflective)
    # Of each run the source that came last: its last evaluation, if there is one.
    last = {source.run: found.analysed for source, found in samples if found.analysed}
    analyses = {
        runs[number].name: analyse([annotate(r, patterns, expressions) for r in responses], min_count=20)
        for number, responses in last.items()
    }
    return Report(list(runs), curves, comparison, arms, samples, analyses)


def page(report: Report, command: str) -> str:
    """The page, with everything in it.

    Args:
      report: What it shows.
      command: That which made it.
    """
    import jinja2  # here: slow to import, and needed for pages only

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    curves, constant = _training(report.runs)
    data = {
        "runs": [run.name for run in report.runs],
        "training": curves,
        "pass_at_k": _pass_at_k(report),
        "over_steps": _over_steps(report.runs),
        "analysis": [_groups(name, analysis) for name, analysis in report.analyses.items()],
        "samples": [
            {"run": source.run, "label": source.label} | found.shown for source, found in report.samples
        ],
    }
    comparison = report.comparison
    return environment.get_template("report.html").render(
        style=(_TEMPLATE / "report.css").read_text(),
        script=(_TEMPLATE / "report.js").read_text(),
        # Within a script element nothing but `</` and `<!--` has a meaning: no `<` is left.
        data=json.dumps(finite(data), separators=(",", ":")).replace("<", "\\u003c"),
        title=" · ".join(run.name for run in report.runs),
        runs=report.runs,
        overview=_overview(report.runs),
        has_curves=bool(curves["panels"]),
        constant=constant,
        binned=any(len(run.metrics) > _POINTS for run in report.runs),
        evaluations=_evaluations(report.runs),
        comparison_error=comparison if isinstance(comparison, str) else None,
        arms=report.arms,
        header=comparison_header(comparison) if isinstance(comparison, Comparison) else [],
        tables=comparison_tables(comparison) if isinstance(comparison, Comparison) else [],
        notes=COMPARISON_NOTES,
        analyses={name: (a, _said(a)) for name, a in report.analyses.items()},
        samples=report.samples,
        longest=LONGEST,
        settings=_settings(report.runs),
        versions=_versions(report.runs),
        command=command,
        version=__version__,
    )


def _compare(runs: Sequence[ReportedRun]) -> tuple[Comparison | str | None, list[str]]:
    """The first run is the baseline; of a single one its first evaluation is."""
    if len(runs) == 2:
        last = [run.last_evaluation for run in runs]
        pairs = [(run.name, found[1] if found else None) for run, found in zip(runs, last, strict=True)]
    elif len(runs) == 1 and len(runs[0].evaluations) > 1:
        run = runs[0]
        steps = (min(run.evaluations), max(run.evaluations))
        pairs = [(f"{run.name}, step {step}", run.evaluations[step][0]) for step in steps]
    else:
        return None, []
    arms = [name for name, _ in pairs]
    without = [name for name, directory in pairs if directory is None]
    if without:
        return f"{', '.join(without)}: no complete evaluation", arms
    try:
        return compare_runs(*(directory for _, directory in pairs)), arms
    except ValueError as error:
        return str(error), arms


def _sources(runs: Sequence[ReportedRun]) -> list[SampleSource]:
    found = []
    for number, run in enumerate(runs):
        if run.is_training and any(run.directory.glob("samples*.jsonl")):
            found.append(SampleSource(number, f"{run.name}: training", run.directory))
        if run.last_evaluation:
            step, directory, _ = run.last_evaluation
            label = f"evaluation at step {step}" if run.is_training else "evaluation"
            found.append(SampleSource(number, f"{run.name}: {label}", directory))
    return found


def _temperature(run: ReportedRun, source: SampleSource) -> float:
    training = run.is_training and source.directory == run.directory
    section = run.config.get("rollout" if training else "evaluation") or run.config
    return float(section.get("temperature", 1.0))


# --- numbers of the charts ---------------------------------------------------------------------------------


def _training(runs: Sequence[ReportedRun]) -> tuple[dict[str, Any], dict[str, float]]:
    """The panels with a curve for each run; and the metrics that never change, with their value."""
    panels, constant = [], {}
    for name, title in _PANELS.items():
        known = [row[name] for run in runs for row in run.metrics if row.get(name) is not None]
        if not known:
            continue
        # What is smaller is rounding, such as the KL of an update that is on-policy.
        if max(known) - min(known) < _ROUNDING and len(known) > 1:
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
    return {"panels": panels}, constant


def _curve(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Steps and values, and running means over a tenth of the run at the same steps."""
    steps = np.array([row["step"] for row in metrics], float)
    values = np.array([np.nan if row.get(name) is None else row[name] for row in metrics], float)
    window = max(1, len(values) // 10)
    smooth = np.append(np.full(window - 1, np.nan), running_mean(values, window))
    if len(steps) > _POINTS:
        bins = np.array_split(np.arange(len(steps)), _POINTS)
        steps = np.array([steps[part].mean().round() for part in bins])
        values = np.array([running_mean(values[part], len(part))[0] for part in bins])
        smooth = np.array([smooth[part[-1]] for part in bins])
    return {"x": steps.tolist(), "y": _short(values), "smooth": _short(smooth)}


def _pass_at_k(report: Report) -> list[dict[str, Any]]:
    series = []
    for label, (number, is_last, curve) in report.curves.items():
        estimate, low, high, problems = zip(*curve.values(), strict=True)
        values = {"y": _short(estimate), "low": _short(low), "high": _short(high), "problems": list(problems)}
        series.append({"run": number, "label": label, "faint": not is_last, "x": list(curve)} | values)
    return series


def _over_steps(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Panels of what evaluations say over the steps, where there are three or more."""
    panels = []
    ks = sorted({k for run in runs for _, found in run.evaluations.values() for k in found.pass_at_k})
    for k in dict.fromkeys((*ks[:1], *ks[-1:])):
        series = []
        for number, run in enumerate(runs):
            steps = [s for s in sorted(run.evaluations) if k in run.evaluations[s][1].pass_at_k]
            points = [run.evaluations[step][1].pass_at_k[k] for step in steps]
            if len(points) > 2:
                y, low, high = (_short(values) for values in zip(*points, strict=True))
                series.append({"run": number, "x": steps, "y": y, "low": low, "high": high})
        if series:
            panels.append({"title": f"Pass@{k} over the steps", "series": series})
    return panels


def _groups(name: str, analysis: Analysis) -> dict[str, Any]:
    """Mean entropies with their intervals: what is looked at, and what it is held against."""
    lines = [line for line in analysis.pivotal if line.against == analysis.pivotal[0].against]
    lines.append(analysis.reflective)
    rows = {}
    for line in lines:
        named = "reflective sentences" if line is analysis.reflective else line.name
        for label, group, is_other in ((named, line.group, False), (line.against, line.other, True)):
            if group.count:
                mean, low, high = _short((group.mean, group.low, group.high))
                values = {"count": group.count, "mean": mean, "low": low, "high": high}
                rows[label] = {"label": label, "other": is_other} | values
    return {"run": name, "rows": sorted(rows.values(), key=lambda row: row["other"])}


def _said(analysis: Analysis) -> list[str]:
    tables: dict[str, list[Contrast]] = {}
    for line in (*analysis.pivotal, analysis.reflective):
        tables.setdefault(line.against, []).append(line)
    return [sentence for lines in tables.values() for sentence in conclusions(lines)]


def _short(values: Any) -> list[float | None]:
    return [float(f"{x:.5g}") for x in np.asarray(values, float).tolist()]


# --- tables ------------------------------------------------------------------------------------------------


def _overview(runs: Sequence[ReportedRun]) -> list[tuple[ReportedRun, list[str]]]:
    """Of each run: steps, what it ended with, Pass@1 and the largest Pass@K, first and last."""
    rows = []
    for run in runs:
        tail = run.metrics[-max(1, len(run.metrics) // 10) :]
        cells = [str(run.metrics[-1]["step"]) if run.metrics else _NOTHING]
        for name, form in (("correct", ".3f"), ("entropy", ".3f"), ("length", ".1f"), ("bonus_share", ".3f")):
            known = [row[name] for row in tail if row.get(name) is not None]
            cells.append(format(np.mean(known), form) if known else _NOTHING)
        cells.append(_first_to_last(run, 1))
        cells.append(_first_to_last(run, None))
        rows.append((run, cells))
    return rows


def _first_to_last(run: ReportedRun, k: int | None) -> str:
    """Pass@K of the first and the last evaluation; the largest K, and said, for None."""
    if not run.evaluations:
        return _NOTHING
    first, last = (run.evaluations[end(run.evaluations)][1].pass_at_k for end in (min, max))
    said = "" if k else f"@{max(last)}: "
    k = k or max(last)
    ends = [first, last] if first is not last and k in first else [last]
    values = " → ".join(f"{found[k][0]:.3f}" for found in ends)
    return f"{said}{values} [{last[k][1]:.3f}, {last[k][2]:.3f}]"


def _evaluations(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """The table of `evaluate`, of the first and the last evaluation of each run."""
    columns: dict[str, Evaluation] = {}
    for run in runs:
        for step in sorted({min(run.evaluations), max(run.evaluations)} if run.evaluations else ()):
            columns[f"{run.name}, step {step}" if run.is_training else run.name] = run.evaluations[step][1]
    return evaluation_rows(columns) if columns else []


def _settings(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str], bool]]:
    """(Dotted path, value of each run, whether they differ); what differs comes first."""
    plain = [dict(flat(run.config)) for run in runs]
    rows = []
    for path in dict.fromkeys(path for config in plain for path in config):
        values = [_value(config[path]) if path in config else _NOTHING for config in plain]
        rows.append((path, values, len(set(values)) > 1))
    return sorted(rows, key=lambda row: not row[2])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _versions(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str], bool]]:
    """What was recorded at the starts of each run, of resumed ones all that differ."""
    names = {"commit": "commit", "devices": "devices", "command": "command", "time": "started"}
    rows = []
    packages = dict.fromkeys(name for run in runs for s in run.starts for name in s.get("versions", {}))
    for label, of_start in (
        *((label, lambda s, n=name: s.get(n)) for name, label in names.items()),
        *((name, lambda s, n=name: s.get("versions", {}).get(n)) for name in packages),
    ):
        values = [
            ", ".join(dict.fromkeys(str(of_start(start) or _NOTHING) for start in run.starts))
            or "not recorded"
            for run in runs
        ]
        rows.append((label, values, len(set(values)) > 1 and label in ("commit", "devices", *packages)))
    return rows
