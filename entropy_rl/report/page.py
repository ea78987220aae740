"""Render a report as a self-contained HTML page, from the files in template/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.analysis import Analysis
from entropy_rl.analysis.contrasts import Contrast
from entropy_rl.evaluation import Comparison, Evaluation
from entropy_rl.report.analysis_tables import conclusions
from entropy_rl.report.build import Report
from entropy_rl.report.chart_data import (
    POINTS,
    entropy_rows,
    panels_over_steps,
    pass_at_k_series,
    sentence_map,
    training_panels,
)
from entropy_rl.report.comparison_tables import (
    COMPARISON_NOTES,
    comparison_header,
    comparison_tables,
)
from entropy_rl.report.reported_run import ReportedRun, flat
from entropy_rl.report.samples import LONGEST
from entropy_rl.report.summary import evaluation_rows, interval_note
from entropy_rl.runs.jsonl import finite
from entropy_rl.version import __version__

_TEMPLATE = Path(__file__).parent / "template"
_NOTHING = "\u2013"


def page(report: Report, command: str) -> str:
    """Render the page, including styles, scripts and data.

    Args:
      report: Its contents.
      command: The command that made it, shown at the end.
    """
    import jinja2  # slow to import, and needed only here

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    panels, constant = training_panels(report.runs)
    data = {
        "runs": [run.name for run in report.runs],
        "training": panels,
        "pass_at_k": pass_at_k_series(report.curves),
        "over_steps": panels_over_steps(report.runs),
        "analysis": [entropy_rows(name, analysis) for name, analysis in report.analyses.items()],
        "maps": [
            sentence_map(name, a.rare) for name, a in report.analyses.items() if a.rare is not None
        ],
        "samples": [
            {"run": source.run, "label": source.label} | selected.shown
            for source, selected in report.samples
        ],
    }
    comparison, columns = report.comparison, _evaluations(report.runs)
    return environment.get_template("report.html").render(
        style=(_TEMPLATE / "report.css").read_text(encoding="utf-8"),
        script=(_TEMPLATE / "report.js").read_text(encoding="utf-8"),
        # `</` and `<!--` are special inside a script element, so every `<` is escaped.
        data=json.dumps(finite(data), separators=(",", ":")).replace("<", "\\u003c"),
        title=" · ".join(run.name for run in report.runs),
        runs=report.runs,
        overview=_overview(report.runs),
        has_curves=bool(panels),
        constant=constant,
        binned=any(len(run.metrics) > POINTS for run in report.runs),
        evaluations=evaluation_rows(columns) if columns else [],
        interval_note=interval_note(list(columns.values())) if columns else "",
        comparison_error=comparison if isinstance(comparison, str) else None,
        compared=report.compared,
        header=comparison_header(comparison) if isinstance(comparison, Comparison) else [],
        tables=comparison_tables(comparison) if isinstance(comparison, Comparison) else [],
        notes=COMPARISON_NOTES,
        analyses={name: (a, _conclusions(a)) for name, a in report.analyses.items()},
        samples=report.samples,
        longest=LONGEST,
        settings=_settings(report.runs),
        versions=_versions(report.runs),
        command=command,
        version=__version__,
    )


def _conclusions(analysis: Analysis) -> list[str]:
    tables: dict[str, list[Contrast]] = {}
    for line in (*analysis.pivotal, *analysis.of_sentences):
        tables.setdefault(line.against, []).append(line)
    return [sentence for lines in tables.values() for sentence in conclusions(lines)]


def _overview(runs: Sequence[ReportedRun]) -> list[tuple[ReportedRun, list[str]]]:
    """Cells of each run: steps, final metrics, Pass@1, and Pass@K at the largest K."""
    rows = []
    for run in runs:
        tail = run.metrics[-max(1, len(run.metrics) // 10) :]
        cells = [str(run.metrics[-1]["step"]) if run.metrics else _NOTHING]
        for name, form in (
            ("correct", ".3f"),
            ("entropy", ".3f"),
            ("length", ".1f"),
            ("bonus_share", ".3f"),
        ):
            known = [row[name] for row in tail if row.get(name) is not None]
            cells.append(format(np.mean(known), form) if known else _NOTHING)
        cells.append(_first_to_last(run, 1))
        cells.append(_first_to_last(run, None))
        rows.append((run, cells))
    return rows


def _first_to_last(run: ReportedRun, k: int | None) -> str:
    """Pass@K of the first and last evaluation; for k = None at the largest K, which is named.

    The K are those at which all problems count: others have another mean.
    """
    if not run.evaluations:
        return _NOTHING
    curves = [result.pass_at_k_of_all for _, _, result in run.first_and_last.values()]
    last = curves[-1]
    prefix = "" if k else f"@{max(last)}: "
    k = k or max(last)
    values = " → ".join(f"{found[k][0]:.3f}" for found in curves if k in found)
    return f"{prefix}{values} [{last[k][1]:.3f}, {last[k][2]:.3f}]"


def _evaluations(runs: Sequence[ReportedRun]) -> dict[str, Evaluation]:
    """The first and last evaluation of each run: label -> result."""
    columns: dict[str, Evaluation] = {}
    for run in runs:
        columns |= {label: result for label, (_, _, result) in run.first_and_last.items()}
    return columns


def _settings(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str], bool]]:
    """(Dotted path, value in each run, whether they differ), differing ones first."""
    plain = [dict(flat(run.config)) for run in runs]
    rows = []
    for path in dict.fromkeys(path for config in plain for path in config):
        values = [_value(config[path]) if path in config else _NOTHING for config in plain]
        rows.append((path, values, len(set(values)) > 1))
    return sorted(rows, key=lambda row: not row[2])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _versions(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str], bool]]:
    """What was recorded at the starts of each run; several values if a run was resumed."""
    names = {"commit": "commit", "devices": "devices", "command": "command", "time": "started"}
    rows = []
    packages = dict.fromkeys(
        name for run in runs for s in run.starts for name in s.get("versions", {})
    )
    for label, of_start in (
        *((label, lambda s, n=name: s.get(n)) for name, label in names.items()),
        *((name, lambda s, n=name: s.get("versions", {}).get(n)) for name in packages),
    ):
        values = [
            ", ".join(dict.fromkeys(str(of_start(start) or _NOTHING) for start in run.starts))
            or "not recorded"
            for run in runs
        ]
        rows.append(
            (label, values, len(set(values)) > 1 and label in ("commit", "devices", *packages))
        )
    return rows
