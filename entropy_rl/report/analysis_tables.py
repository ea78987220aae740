"""Tables of an entropy analysis for the terminal, and its sentences as CSV."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from entropy_rl.analysis import Analysis, Contrast, RareBehaviors
from entropy_rl.evaluation.compare import LEVEL
from entropy_rl.evaluation.dynamics import RunDynamics
from entropy_rl.report.tables import csv_text
from entropy_rl.report.terminal import aligned, interval_text
from entropy_rl.runs.jsonl import write_atomically

SENTENCES_FILE = "sentences.csv"
_WIDTH = 105
_HEADINGS = ("", "count", "entropy", "95% interval", "difference", "95% interval")
_HEADINGS += ("d", "P(more)", "p adjusted", "problems")
_NOTES = f"""Entropy in nats. Difference, P(more) and p compare within each problem, then over
problems, because tokens of one problem are not independent. P(more): probability that a value of
the row exceeds one of the comparison group; 0.5 means no difference. d: Cohen's d over all values.
p: sign-flip test over problems, two-sided; adjusted: Holm's correction over the rows of the table,
* where <= {LEVEL}. Word lists and expressions are this library's or yours; the paper's are not
published. These are correlations: they do not show that entropy causes a behavior."""
_MOST_TOKENS = 10


def analysis_text(analysis: Analysis) -> str:
    """Format all tables of an analysis, each with its conclusions."""
    a = analysis
    parts = [
        f"{a.problems} problems, {a.responses} responses, {a.tokens} tokens, "
        f"{a.sentences} sentences; mean entropy {a.entropy:.3f}"
    ]
    against = list(dict.fromkeys(line.against for line in a.pivotal))
    parts += [
        _section(f"Pivotal tokens against {name}", [x for x in a.pivotal if x.against == name])
        for name in against
    ]
    parts.append(_most_entropic(a))
    parts.append(_section("Reflective sentences against other sentences", [a.reflective]))
    if a.rare is not None:
        title = (
            f"Rare sentences ({a.rare.contrast.group.count} of {a.rare.sentences}, over "
            f"{a.rare.problems} problems of both: distance >= {a.rare.threshold:.3f} from the "
            f"{a.rare.base_sentences} sentences of {a.rare.base}) against common sentences"
        )
        parts.append(_section(title, [a.rare.contrast]))
    return "\n\n".join([*parts, _NOTES])


def dynamics_text(dynamics: RunDynamics) -> str:
    """Format the evaluations of a run by step; without any, its first and last training samples."""
    points = dynamics.evaluations or [*dynamics.training[:1], *dynamics.training[1:][-1:]]
    title = (
        "evaluations of the run"
        if dynamics.evaluations
        else "first and last recorded samples of the run"
    )
    names = list(points[0].behaviors) if points else []
    rows = [("step", "responses", "length", "entropy", "repetition", "Pass@1", *names)]
    for point in points:
        curve = dynamics.pass_at_k.get(point.step, {})
        rows.append(
            (
                str(point.step),
                str(point.responses),
                f"{point.length:.1f}",
                f"{point.entropy:.3f}",
                f"{point.repetition:.3f}",
                f"{curve[1][0]:.3f}" if 1 in curve else "-",
                *(
                    f"{rate.per_response:.2f} ({rate.entropy:.2f})"
                    if rate.per_response
                    else f"{rate.per_response:.2f}"
                    for rate in point.behaviors.values()
                ),
            )
        )
    return f"Behaviors per response (and their mean entropy), {title}\n{aligned(rows)}"


def conclusions(lines: Sequence[Contrast]) -> list[str]:
    """State the conclusions of a table in sentences."""
    against = lines[0].against
    sentences = [
        f"{_names(group)} {'have' if len(group) > 1 else 'has'} significantly {how} entropy than "
        f"{against}"
        for how, sign in (("more", 1), ("less", -1))
        if (group := [x for x in lines if x.p_adjusted <= LEVEL and x.difference * sign > 0])
    ]
    not_significant = [x for x in lines if x.problems and not x.p_adjusted <= LEVEL]
    if not_significant:
        sentences.append(f"no significant difference from {against} for {_names(not_significant)}")
    not_tested = [x for x in lines if not x.problems]
    absent = [x for x in not_tested if not x.group.count]
    unpaired = [x for x in not_tested if x.group.count]
    if absent:
        sentences.append(f"not tested: {_names(absent)} (none found)")
    if unpaired:
        sentences.append(
            f"not tested: {_names(unpaired)} (no problem has both these and {against})"
        )
    return sentences


def _names(lines: Sequence[Contrast]) -> str:
    return ", ".join(line.name for line in lines)


def write_sentences(directory: Path, rare: RareBehaviors | None) -> None:
    """Write the sentences of the map as CSV: the most distant first, the base model's last.

    Without a map, the file of an earlier analysis is removed.
    """
    if rare is None:
        (directory / SENTENCES_FILE).unlink(missing_ok=True)
        return
    fields = ("distance", "rare", "entropy", "x", "y", "text")
    order = sorted(
        rare.placed, key=lambda s: -math.inf if s.distance is None else s.distance, reverse=True
    )
    rows = [[getattr(sentence, name) for name in fields] for sentence in order]
    write_atomically(directory / SENTENCES_FILE, csv_text([fields, *rows]))


def _section(title: str, lines: Sequence[Contrast]) -> str:
    other = lines[0].other
    if other.count:
        interval = interval_text(other.low, other.high)
        title += f" ({other.count}, entropy {other.mean:.3f} {interval})"
    table = [_HEADINGS, *(_cells(line) for line in lines if line.group.count)]
    sentences = [
        textwrap.fill(f"=> {sentence}", _WIDTH, subsequent_indent="   ")
        for sentence in conclusions(lines)
    ]
    return "\n".join([title, *([aligned(table)] if len(table) > 1 else []), *sentences])


def _cells(line: Contrast) -> tuple[str, ...]:
    group = line.group
    interval = interval_text(group.low, group.high)
    mean = line.name, str(group.count), f"{group.mean:.3f}", interval
    if not line.problems:
        return (*mean, *("-",) * 5, "0")
    return (
        *mean,
        f"{line.difference:+.3f}",
        interval_text(line.low, line.high, "+.3f"),
        "-" if math.isnan(line.cohens_d) else f"{line.cohens_d:+.2f}",
        f"{line.superiority:.2f}",
        f"{line.p_adjusted:.2g}" + ("*" if line.p_adjusted <= LEVEL else ""),
        str(line.problems),
    )


def _most_entropic(analysis: Analysis) -> str:
    title = "Most entropic tokens"
    tokens = analysis.most_entropic[:_MOST_TOKENS]
    if not tokens:
        return f"{title}\n=> none occurs often enough (min_count)"
    rows = [(repr(t.text), str(t.count), f"{t.entropy:.3f}", str(t.problems)) for t in tokens]
    return f"{title}\n{aligned([('', 'count', 'entropy', 'problems'), *rows])}"
