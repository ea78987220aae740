"""A comparison of two runs as text for the terminal and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import textwrap

from entropy_rl.evaluation import Comparison, Line
from entropy_rl.evaluation.compare_runs import LEVEL
from entropy_rl.report.table import aligned

# field of the comparison -> (its title, what is measured there)
_TABLES = {
    "pass_at_k": ("Pass@K", "Pass@K"),
    "equal_budget": (
        "Pass@K for equal tokens: samples are drawn until the budget is spent",
        "the chance of a correct answer within a budget of tokens",
    ),
    "equal_length": (
        "Pass@K over samples of equal lengths: strata of length, equally many samples from each",
        "Pass@K over samples of equal lengths",
    ),
    "diversity": (
        "Diversity at equal accuracy: as many correct and as many wrong samples of each problem",
        "diversity at equal accuracy",
    ),
}
COMPARISON_NOTES = f"""\
p: paired bootstrap over problems, two-sided. p adjusted: Holm's correction over the lines of the
table, * where <= {LEVEL}. p sign flips: permutation test, as a check, not adjusted. Length is
itself a result of training: the tables of equal length ask whether a gain is more than length, not
whether it is real. The tests compare two runs; only more seeds show whether other runs of the same
methods differ in the same way."""
_WIDTH = 105
_HEADINGS = ("", "A", "B", "B - A", "95% interval", "p", "p adjusted", "p sign flips", "problems")


def comparison_text(comparison: Comparison) -> str:
    """The tables, and what follows from them in plain words."""
    parts = ["\n".join(comparison_header(comparison))]
    for title, rows, said in comparison_tables(comparison):
        table = f"{aligned(rows)}\n" if rows else ""
        conclusion = textwrap.fill(f"=> {said}", _WIDTH, subsequent_indent="   ")
        parts.append(f"{title}\n{table}{conclusion}")
    parts.append(COMPARISON_NOTES)
    return "\n\n".join(parts)


def comparison_tables(comparison: Comparison) -> list[tuple[str, list[tuple[str, ...]], str]]:
    """(Title, cells with the headings first or nothing, what follows in a sentence) of each
    table.
    """
    tables = []
    for field, (title, what) in _TABLES.items():
        lines = getattr(comparison, field)
        tables.append(
            (title, [_HEADINGS, *map(_cells, lines)] if lines else [], verdict(lines, what))
        )
    return tables


def verdict(lines: list[Line], what: str) -> str:
    """What follows from a table, in a sentence."""
    if not lines:
        return f"nothing can be said of {what}: no problem has such samples in both"
    found = []
    for winner, sign in (("A", -1), ("B", 1)):
        names = [x.name for x in lines if x.is_significant and x.difference * sign > 0]
        if names:
            found.append(f"{winner} has significantly more at {', '.join(names)}")
    if not found:
        smallest = min(line.p_adjusted for line in lines)
        return f"no significant difference in {what} (smallest adjusted p: {smallest:.2g})"
    rest = sum(not line.is_significant for line in lines)
    others = f"; no significant difference at the other {rest}" if rest else ""
    return f"{'; '.join(found)}{others}"


def comparison_csv(comparison: Comparison) -> str:
    """All tables as one CSV: the field of the comparison, then those of its lines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", *(field.name for field in dataclasses.fields(Line))])
    for table in _TABLES:
        writer.writerows([table, *dataclasses.astuple(line)] for line in getattr(comparison, table))
    return text.getvalue()


def comparison_header(comparison: Comparison) -> list[str]:
    """What the tables are about, a line each."""
    lines = [f"{comparison.problems} problems"]
    if comparison.only_in_one:
        lines.append(f"left out: {comparison.only_in_one} problems that only one of them has")
    if comparison.not_judged:
        lines.append(
            f"left out: {comparison.not_judged} problems without a judged sample in one of them"
        )
    if any(comparison.unjudged_samples):
        a, b = comparison.unjudged_samples
        lines.append(f"left out: samples that no verifier could judge, {a} of A and {b} of B")
    return lines + [f"settings differ: {line}" for line in comparison.settings]


def _cells(line: Line) -> tuple[str, ...]:
    digits = 3 if max(line.a, line.b) >= 0.05 else 5
    return (
        line.name,
        f"{line.a:.{digits}f}",
        f"{line.b:.{digits}f}",
        f"{line.difference:+.{digits}f}",
        f"[{line.low:+.{digits}f}, {line.high:+.{digits}f}]",
        f"{line.p_value:.2g}",
        f"{line.p_adjusted:.2g}" + ("*" if line.is_significant else ""),
        f"{line.p_sign_flips:.2g}",
        str(line.problems),
    )
