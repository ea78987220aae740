"""study.json, study.md and the figures: what a study says so far, and what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import yaml

from entropy_rl.config.study import BASE
from entropy_rl.runs.directory import to_plain
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.studies.analysis import Analysis, Difference, Finding, Interval, analyze
from entropy_rl.studies.figures import write_figures
from entropy_rl.studies.grid import Design
from entropy_rl.studies.runner import commands, duration, total

RESULT_FILE = "study.json"
PAGE_FILE = "study.md"
_RULE = """The first of these that holds: *no material effect*, the interval is within ± the
smallest effect of interest; *supports* or *contradicts*, p after Holm's correction over all
registered hypotheses is at most alpha, and the difference is above or below 0; *not settled*.
Intervals are not adjusted, and are of a bootstrap over seeds and problems
(`entropy_rl.stats.bootstrap.crossed_bootstrap`). A verdict from fewer seeds than registered is
interim, and none of the study."""
_CONTROLS = ("length", "truncated", "entropy", "final_entropy", "tokens")


def write_report(design: Design) -> str:
    """Writes study.json, study.md and the figures into the directory of the study.

    Returns:
      The verdicts, and where everything is, for the terminal.
    """
    analysis = analyze(design)
    plain = {"design": to_plain(design)} | analysis.to_plain()
    write_atomically(design.directory / RESULT_FILE, json.dumps(plain, indent=1) + "\n")
    figures = write_figures(design.directory, analysis)
    write_atomically(design.directory / PAGE_FILE, page(design, analysis, figures))
    lines = [verdict(found, analysis) for found in analysis.findings]
    missing = analysis.missing()
    state = f"{len(missing)} of {len(analysis.records)} runs are missing" if missing else "complete"
    return "\n\n".join([*lines, f"{state}; everything is in {design.directory / PAGE_FILE}"])


def verdict(found: Finding, analysis: Analysis) -> str:
    """What is known of a hypothesis, in sentences."""
    h = found.hypothesis
    if not found.seeds:
        return f"{h.name}: no data yet. {h.claim}"
    interim = (
        "" if found.is_final else f"interim, {found.seeds} of {found.seeds_registered} seeds: "
    )
    text = (
        f"{h.name}: {interim}{found.decision}. {h.claim} {h.endpoint} of {h.arm} minus "
        f"{h.against}: "
        f"{_signed(found.difference)}, {1 - h.alpha:.0%} interval "
        f"{_interval(found.low, found.high)}, over "
        f"{_count(found.seeds, 'seed')} and {_count(found.problems, 'problem')}; "
        f"p {found.p_value:.2g}, after Holm's correction {found.p_adjusted:.2g}."
    )
    doubtful = [arm for arm in (h.arm, h.against) if arm in analysis.flags]
    return text + (f" Doubtful: {' and '.join(doubtful)} flagged." if doubtful else "")


def page(design: Design, analysis: Analysis, figures: Sequence[str]) -> str:
    """The Markdown page."""
    parts = [
        f"# Study: {design.directory.name}",
        _state(analysis),
        "## Verdicts",
        "\n".join(f"- {verdict(found, analysis)}" for found in analysis.findings),
        _hypotheses(analysis),
        _RULE,
        "## Arms",
        "Mean over seeds, and 95% interval of Student's t over them; a single seed has none.",
        _pass_at_k(analysis),
        _controls(analysis),
        "`final_entropy`: of training, over its last 10 steps; "
        "`tokens`: sampled in training, in millions. The rest is of the evaluation.",
        _beside(design, analysis),
        _flags(analysis),
        *(f"![{name}]({name})" for name in figures),
        "## What was run",
        _runs(analysis),
        "The commands of the first seed of each arm:",
        "```bash\n" + "\n".join(commands(design)) + "\n```",
        "The design, as it was registered:",
        "```yaml\n" + yaml.safe_dump(to_plain(design.study), sort_keys=False) + "```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _state(analysis: Analysis) -> str:
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


def _hypotheses(analysis: Analysis) -> str:
    header = (
        "hypothesis",
        "endpoint",
        "arm",
        "against",
        "difference",
        "interval",
        "p",
        "p adjusted",
    )
    header += ("smallest effect", "alpha", "seeds", "problems", "left out", "verdict")
    rows = []
    for found in analysis.findings:
        h = found.hypothesis
        numbers = ("-",) * 6
        if found.seeds:
            numbers = (
                f"{h.arm} {found.arm_mean:.4g}",
                f"{h.against} {found.against_mean:.4g}",
                _signed(found.difference),
                _interval(found.low, found.high),
                f"{found.p_value:.2g}",
                f"{found.p_adjusted:.2g}",
            )
        rows.append(
            (
                *(h.name, h.endpoint, *numbers, f"{h.smallest_effect:g}", f"{h.alpha:g}"),
                f"{found.seeds} of {found.seeds_registered}",
                str(found.problems),
                str(found.problems_left_out),
                ("" if found.is_final else "interim: ")
                + (found.decision if found.seeds else "no data yet"),
            )
        )
    return _table(header, rows)


def _pass_at_k(analysis: Analysis) -> str:
    names = dict.fromkeys(
        name for arm in analysis.measures.values() for name in arm if name.startswith("pass@")
    )
    return _by_arm(analysis, list(names), "{:.3f}")


def _controls(analysis: Analysis) -> str:
    skills = dict.fromkeys(
        name for arm in analysis.measures.values() for name in arm if name.startswith("skill/")
    )
    return _by_arm(analysis, [*_CONTROLS, *skills], "{:.4g}")


def _beside(design: Design, analysis: Analysis) -> str:
    """Against one arm, the same for all: what the registered hypotheses do not ask."""
    if not analysis.beside:
        return ""
    endpoints = list(next(iter(analysis.beside.values())))
    rows = [
        (arm, str(of_arm[endpoints[0]].seeds), *(_difference(of_arm[e]) for e in endpoints))
        for arm, of_arm in analysis.beside.items()
    ]
    return (
        f"Each arm minus `{design.study.registered()[0].against}`, on the seeds and problems that "
        "both have, "
        "with the 95% interval of the same bootstrap; a single seed has none. This was not "
        "registered and is "
        "not corrected for how many comparisons it makes: it is for looking at.\n\n"
    ) + _table(("arm", "seeds", *endpoints), rows)


def _difference(found: Difference) -> str:
    interval = "" if math.isinf(found.low) else f" {_interval(found.low, found.high)}"
    return _signed(found.difference) + interval


def _by_arm(analysis: Analysis, names: Sequence[str], form: str) -> str:
    rows = [
        (
            arm,
            str(max(value[3] for value in measures.values())),
            *(_cell(measures.get(n), n, form) for n in names),
        )
        for arm, measures in analysis.measures.items()
    ]
    return _table(("arm", "seeds", *names), rows) if rows else ""


def _cell(value: Interval | None, name: str, form: str) -> str:
    if value is None:
        return "-"
    mean, low, high, _ = (x / 1e6 for x in value) if name == "tokens" else value
    ends = "" if math.isinf(low) else f" [{form.format(low)}, {form.format(high)}]"
    return form.format(mean) + ends


def _flags(analysis: Analysis) -> str:
    lines = [f"- {arm}: {sentence}" for arm, found in analysis.flags.items() for sentence in found]
    return "\n".join(["Flags:", "", *lines]) if lines else "No arm is flagged."


def _runs(analysis: Analysis) -> str:
    rows = []
    for arm in dict.fromkeys(unit.arm for unit in analysis.records):
        records = {unit: record for unit, record in analysis.records.items() if unit.arm == arm}
        complete = [str(unit.seed) for unit in records if unit in analysis.results]
        seconds = sum(total(record) for record in records.values())
        machines = sorted({record.machine for record in records.values() if record.machine})
        rows.append(
            (arm, ", ".join(complete) or "none", duration(seconds), "; ".join(machines) or "-")
        )
    spent = sum(total(record) for record in analysis.records.values())
    header = ("arm", "complete seeds", "time", "machine")
    return (
        _table(header, rows)
        + f"\n\nAll runs took {duration(spent)}, added up also where several were at work at once. "
        f"Starts that were killed are not in it. The seed of `{BASE}` is that of its samples."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def _interval(low: float, high: float) -> str:
    return "unbounded" if math.isinf(low) else f"[{low:+.4g}, {high:+.4g}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
