"""Report of a study: study.json, study.md, the figures, and tables as CSV and LaTeX."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from entropy_rl.config.study import BASE
from entropy_rl.report.tables import csv_table, latex_table, markdown_table
from entropy_rl.runs.directory import to_plain
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.studies.analysis import StudyAnalysis, analyze_study
from entropy_rl.studies.figures import write_figures
from entropy_rl.studies.grid import Design
from entropy_rl.studies.hypotheses import Difference, HypothesisTest
from entropy_rl.studies.measures import SeedMean
from entropy_rl.studies.plan import commands, format_duration
from entropy_rl.yaml_text import dump_yaml

Table = tuple[Sequence[str], list[tuple[str, ...]]]  # headings, cells

RESULT_FILE = "study.json"
PAGE_FILE = "study.md"
_RULE = """The first rule that holds decides: *no material effect*, the interval is within ± the
smallest effect of interest; *supports* or *contradicts*, the two-sided p after Holm's correction
over all registered hypotheses is at most alpha, and the difference is positive or negative; *not
settled* otherwise. Intervals are not adjusted; they come from a bootstrap over seeds and problems
(`entropy_rl.stats.bootstrap.crossed_bootstrap`). A verdict from fewer seeds than registered is
interim and does not count as a result of the study."""
_MATCHED = """Pass@K of the hypotheses with matched samples, arm minus against: *equal length* draws
equally many samples of both runs from each stratum of length
(`entropy_rl.stats.matched.pass_at_k_at_equal_length`), *equal budget* counts what is found within K
times the mean length of both runs, in tokens (`pass_at_budget`). A problem counts if it has a value
in all seeds, and a seed if its records have the lengths of the samples. The intervals are those of
a bootstrap over seeds and problems. These comparisons are exploratory: not registered, and not
corrected for multiple testing."""
_CONTROLS = ("length", "truncated", "unique_answers", "entropy", "final_entropy", "tokens")


def write_report(design: Design) -> str:
    """Write study.json, study.md, figures and tables into the directory of the study.

    Returns:
      The verdicts and the path of the page, for the terminal.
    """
    analysis = analyze_study(design)
    plain = {"design": to_plain(design)} | analysis.to_plain()
    write_atomically(design.directory / RESULT_FILE, json.dumps(plain, indent=1) + "\n")
    figures = write_figures(design.directory, analysis)
    write_atomically(design.directory / PAGE_FILE, page(design, analysis, figures))
    _write_tables(design, analysis)
    lines = [verdict(test, analysis) for test in analysis.tests]
    missing = analysis.missing()
    state = f"{len(missing)} of {len(analysis.records)} runs are missing" if missing else "complete"
    return "\n\n".join([*lines, f"{state}; the report is {design.directory / PAGE_FILE}"])


def verdict(test: HypothesisTest, analysis: StudyAnalysis) -> str:
    """The verdict on a hypothesis, in sentences."""
    h = test.hypothesis
    claim = f'{h.name}. Claim: "{h.claim}"'
    if not test.seeds:
        return f"{claim} Verdict: no data yet."
    interim = "" if test.is_final else f"interim, {test.seeds} of {test.seeds_registered} seeds: "
    left_out = f", {_count(test.problems_left_out, 'problem')} left out"
    text = (
        f"{claim} Verdict: {interim}{test.decision}{_direction(test)}. {h.endpoint} of {h.arm} "
        f"minus {h.against}: {_signed(test.difference)}, {1 - h.alpha:.0%} interval "
        f"{_interval(test.low, test.high)}, over {_count(test.seeds, 'seed')} and "
        f"{_count(test.problems, 'problem')}{left_out if test.problems_left_out else ''}; "
        f"two-sided p {test.p_value:.2g}, after Holm's correction {test.p_adjusted:.2g}."
    )
    doubtful = [arm for arm in (h.arm, h.against) if arm in analysis.flags]
    return text + (f" Doubtful: {' and '.join(doubtful)} flagged." if doubtful else "")


def _direction(test: HypothesisTest) -> str:
    """The decision in words of the rule: it compares two arms, whatever the claim says."""
    h = test.hypothesis
    return {
        "supports": f" ({h.arm} is above {h.against})",
        "contradicts": f" ({h.arm} is below {h.against})",
        "no material effect": f" (the interval is within ±{h.smallest_effect:g})",
    }.get(test.decision, "")


def page(design: Design, analysis: StudyAnalysis, figures: Sequence[str]) -> str:
    """Render the Markdown page."""
    differences = markdown_table(*_baseline_differences(design, analysis))
    parts = [
        f"# Study: {design.directory.name}",
        _state(analysis),
        "## Verdicts",
        "\n".join(f"- {verdict(test, analysis)}" for test in analysis.tests),
        markdown_table(*_hypotheses(analysis)),
        _RULE,
        "## Arms",
        "Mean over seeds, with the 95% interval of Student's t; a single seed has no interval.",
        markdown_table(*_pass_at_k(analysis)),
        markdown_table(*_controls(analysis)),
        "`final_entropy`: training, mean over the last 10 steps; `tokens`: sampled in training, in "
        "millions. All other columns come from the evaluation. `unique_answers`: distinct answers "
        "of a problem, as a fraction of its samples with an answer.",
        _MATCHED if analysis.matched else "",
        markdown_table(*_matched(analysis)),
        _exploratory(design) if differences else "",
        differences,
        _flags(analysis),
        *(f"![{name}]({name})" for name in figures),
        "## What was run",
        _runs(analysis),
        "The commands of the first seed of each arm:",
        "```bash\n" + "\n".join(commands(design)) + "\n```",
        "The registered design:",
        "```yaml\n" + dump_yaml(to_plain(design.study)) + "```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _state(analysis: StudyAnalysis) -> str:
    missing = analysis.missing()
    if not missing:
        return f"Complete: {len(analysis.records)} runs."
    failed = {
        unit: analysis.records[unit].failed for unit in missing if analysis.records[unit].failed
    }
    by_arm: dict[str, list[str]] = {}
    for unit in missing:
        by_arm.setdefault(unit.arm, []).append(str(unit.seed))
    lines = [
        f"**Incomplete**: {len(missing)} of {len(analysis.records)} runs are missing.",
        *(f"- {arm}: seeds {', '.join(seeds)}" for arm, seeds in by_arm.items()),
        *(f"- failed: {unit}: {reason}" for unit, reason in failed.items()),
    ]
    return "\n".join([lines[0], "", *lines[1:]])


def _write_tables(design: Design, analysis: StudyAnalysis) -> None:
    """Write tables/*.csv and *.tex; a table without rows is left out."""
    study = f"Study {design.directory.name}"
    interval = "mean over seeds, with the 95% interval of Student's t"
    tables = {
        "hypotheses": (
            _hypotheses(analysis),
            f"{study}: registered hypotheses, arm minus against. {_plain_text(_RULE)}",
        ),
        "pass_at_k": (_pass_at_k(analysis), f"{study}: Pass@K, {interval}."),
        "controls": (_controls(analysis), f"{study}: controls, {interval}."),
        "matched": (_matched(analysis), f"{study}. {_plain_text(_MATCHED)}"),
        "differences": (
            _baseline_differences(design, analysis),
            f"{study}. {_exploratory(design)}",
        ),
    }
    directory = design.directory / "tables"
    directory.mkdir(exist_ok=True)
    for name, ((header, rows), caption) in tables.items():
        if rows:
            write_atomically(directory / f"{name}.csv", csv_table(header, rows))
            caption = caption.replace("`", "")  # of Markdown
            write_atomically(directory / f"{name}.tex", latex_table(header, rows, caption))


def _hypotheses(analysis: StudyAnalysis) -> Table:
    header = ("hypothesis", "endpoint", "arm", "against", "difference", "interval")
    header += ("p", "p adjusted")
    header += ("smallest effect", "alpha", "seeds", "problems", "left out", "verdict")
    rows = []
    for test in analysis.tests:
        h = test.hypothesis
        numbers = ("-",) * 6
        if test.seeds:
            numbers = (
                f"{h.arm} {test.arm_mean:.4g}",
                f"{h.against} {test.against_mean:.4g}",
                _signed(test.difference),
                _interval(test.low, test.high),
                f"{test.p_value:.2g}",
                f"{test.p_adjusted:.2g}",
            )
        rows.append(
            (
                *(h.name, h.endpoint, *numbers, f"{h.smallest_effect:g}", f"{h.alpha:g}"),
                f"{test.seeds} of {test.seeds_registered}",
                str(test.problems),
                str(test.problems_left_out),
                ("" if test.is_final else "interim: ")
                + (test.decision if test.seeds else "no data yet"),
            )
        )
    return header, rows


def _pass_at_k(analysis: StudyAnalysis) -> Table:
    names = dict.fromkeys(
        name for arm in analysis.measures.values() for name in arm if name.startswith("pass@")
    )
    return _by_arm(analysis, list(names), "{:.3f}")


def _controls(analysis: StudyAnalysis) -> Table:
    skills = dict.fromkeys(
        name for arm in analysis.measures.values() for name in arm if name.startswith("skill/")
    )
    return _by_arm(analysis, [*_CONTROLS, *skills], "{:.4g}")


def _baseline_differences(design: Design, analysis: StudyAnalysis) -> Table:
    if not analysis.baseline_differences:
        return (), []
    endpoints = list(next(iter(analysis.baseline_differences.values())))
    hypotheses = design.study.registered()
    registered = {(frozenset((h.arm, h.against)), h.endpoint) for h in hypotheses}

    def cell(arm: str, endpoint: str, difference: Difference) -> str:
        pair = frozenset((arm, hypotheses[0].against))
        return "registered" if (pair, endpoint) in registered else _difference(difference)

    rows = [
        (arm, str(of_arm[endpoints[0]].seeds), *(cell(arm, e, of_arm[e]) for e in endpoints))
        for arm, of_arm in analysis.baseline_differences.items()
    ]
    rows = [row for row in rows if set(row[2:]) != {"registered"}]
    return ("arm", "seeds", *endpoints), rows


def _exploratory(design: Design) -> str:
    return (
        f"Each arm minus `{design.study.registered()[0].against}`, on the seeds and problems of "
        "both, with the 95% interval of a bootstrap over seeds and problems; a single seed has no "
        "interval. These comparisons are exploratory: not registered, and not corrected for "
        "multiple testing. Registered ones are in the table of hypotheses."
    )


def _matched(analysis: StudyAnalysis) -> Table:
    rows = [
        (
            *(name, control, _difference(difference) if difference.problems else "-"),
            *map(str, (difference.seeds, difference.problems, difference.problems_left_out)),
        )
        for name, controls in analysis.matched.items()
        for control, difference in controls.items()
    ]
    return ("hypothesis", "control", "difference", "seeds", "problems", "left out"), rows


def _plain_text(markdown: str) -> str:
    return " ".join(markdown.replace("*", "").split())


def _difference(d: Difference) -> str:
    return _signed(d.difference) + ("" if math.isinf(d.low) else f" {_interval(d.low, d.high)}")


def _by_arm(analysis: StudyAnalysis, names: Sequence[str], form: str) -> Table:
    rows = [
        (
            arm,
            str(max(value[3] for value in measures.values())),
            *(_cell(measures.get(n), n, form) for n in names),
        )
        for arm, measures in analysis.measures.items()
    ]
    return ("arm", "seeds", *names), rows


def _cell(value: SeedMean | None, name: str, form: str) -> str:
    if value is None:
        return "-"
    mean, low, high, _ = (x / 1e6 for x in value) if name == "tokens" else value
    ends = "" if math.isinf(low) else f" [{form.format(low)}, {form.format(high)}]"
    return form.format(mean) + ends


def _flags(analysis: StudyAnalysis) -> str:
    lines = [f"- {arm}: {reason}" for arm, reasons in analysis.flags.items() for reason in reasons]
    if lines:
        return "\n".join(["Flags:", "", *lines])
    if analysis.missing():
        return "Flags: not known before all runs are complete."
    return "No arm is flagged."


def _runs(analysis: StudyAnalysis) -> str:
    rows = []
    for arm in dict.fromkeys(unit.arm for unit in analysis.records):
        records = {unit: record for unit, record in analysis.records.items() if unit.arm == arm}
        complete = [str(unit.seed) for unit in records if unit in analysis.results]
        seconds = sum(record.total_seconds for record in records.values())
        machines = sorted({record.machine for record in records.values() if record.machine})
        rows.append(
            (
                arm,
                ", ".join(complete) or "none",
                format_duration(seconds),
                "; ".join(machines) or "-",
            )
        )
    spent = sum(record.total_seconds for record in analysis.records.values())
    header = ("arm", "complete seeds", "time", "machine")
    return (
        markdown_table(header, rows)
        + f"\n\nAll runs took {format_duration(spent)} in total; parallel runs count separately, "
        "and starts that were killed are not included. "
        f"The seed of `{BASE}` is that of its samples."
    )


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def _interval(low: float, high: float) -> str:
    return "unbounded" if math.isinf(low) else f"[{low:+.4g}, {high:+.4g}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
