"""Tables of a comparison of two runs, for the terminal, as CSV and as LaTeX."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from entropy_rl.evaluation import Comparison, ComparisonRow
from entropy_rl.evaluation.compare import LEVEL
from entropy_rl.report.tables import csv_text, latex_table
from entropy_rl.report.terminal import aligned, interval_text

# Field of the comparison -> (title of the table, name of the measure).
_TABLES = {
    "pass_at_k": ("Pass@K", "Pass@K"),
    "equal_budget": (
        "Pass@K at equal budget: samples are drawn until the budget of tokens is spent",
        "the probability of a correct answer within a budget of tokens",
    ),
    "equal_length": (
        "Pass@K at equal length: equally many samples of both runs from each stratum of length",
        "Pass@K at equal length",
    ),
    "diversity": (
        "Diversity at equal accuracy: equally many correct and wrong samples of both runs",
        "diversity at equal accuracy",
    ),
    "grades": ("Grades: means of the task's graded reward and of its parts", "grades"),
}
_OPTIONAL = ("grades",)  # tables that most tasks have no rows for
_TESTS = f"""\
p: sign-flip test over problems, two-sided. p adjusted: Holm's correction over the rows of the
table, * where at most {LEVEL}. Intervals: paired bootstrap over problems, not adjusted."""
COMPARISON_NOTES = f"""\
{_TESTS}
At the margin interval and p may disagree. With few problems intervals are too narrow: those of 95%
cover the true difference in 0.90 of simulations with 8 problems, 0.93 with 16 or 30, 0.94 with 64.
Length is itself a result of training: the table of equal length asks whether a gain is more than
length, not whether it is real. distinct-n falls with the length of the samples, at equal accuracy
as well. The tests compare two runs; only more seeds show whether other runs of the same methods
differ in the same way."""
_WIDTH = 105
_HEADINGS = ("", "A", "B", "B - A", "95% interval", "p", "p adjusted", "problems")


def comparison_text(comparison: Comparison) -> str:
    """Format all tables of a comparison, each with its conclusion."""
    parts = ["\n".join(comparison_header(comparison))]
    for title, rows, sentence in comparison_tables(comparison):
        table = f"{aligned(rows)}\n" if rows else ""
        conclusion = textwrap.fill(f"=> {sentence}", _WIDTH, subsequent_indent="   ")
        parts.append(f"{title}\n{table}{conclusion}")
    parts.append(COMPARISON_NOTES)
    return "\n\n".join(parts)


def comparison_tables(comparison: Comparison) -> list[tuple[str, list[tuple[str, ...]], str]]:
    """The tables as (title, cells, verdict); the cells begin with the headings, or are empty."""
    tables = []
    for field, (title, measure) in _TABLES.items():
        rows = getattr(comparison, field)
        if field in _OPTIONAL and not rows:
            continue
        cells = [_HEADINGS, *map(_cells, rows)] if rows else []
        tables.append((title, cells, verdict(rows, measure)))
    return tables


def verdict(rows: list[ComparisonRow], measure: str) -> str:
    """State the conclusion of a table in a sentence."""
    if not rows:
        return f"{measure} was not tested: no problem has such samples in both runs"
    parts = []
    for winner, sign in (("A", -1), ("B", 1)):
        names = [row.name for row in rows if row.is_significant and row.difference * sign > 0]
        if names:
            parts.append(f"{winner} is significantly higher at {', '.join(names)}")
    if not parts:
        smallest = min(row.p_adjusted for row in rows)
        return f"no significant difference in {measure} (smallest adjusted p: {smallest:.2g})"
    rest = sum(not row.is_significant for row in rows)
    others = f"; no significant difference at the other {rest}" if rest else ""
    return f"{'; '.join(parts)}{others}"


def comparison_latex(comparison: Comparison, runs: Sequence[str]) -> str:
    """The tables as LaTeX; the caption has the title, the two runs, the conclusion and the tests.

    Args:
      comparison: The comparison.
      runs: Names of A and B.
    """
    a, b = runs
    tests = " ".join(_TESTS.split())
    return "\n".join(
        latex_table(
            rows[0],
            rows[1:],
            f"{title}. A: {a}; B: {b}. {sentence[:1].upper()}{sentence[1:]}. {tests}",
        )
        for title, rows, sentence in comparison_tables(comparison)
        if rows
    )


def comparison_csv(comparison: Comparison, runs: Sequence[str]) -> str:
    """Write all tables as one CSV: the table, the runs A and B, then the fields of its rows.

    Args:
      comparison: The comparison.
      runs: Names of A and B.
    """
    fields = (field.name for field in dataclasses.fields(ComparisonRow))
    rows = [
        (table, *runs, *dataclasses.astuple(row))
        for table in _TABLES
        for row in getattr(comparison, table)
    ]
    return csv_text([("table", "run_a", "run_b", *fields), *rows])


def comparison_header(comparison: Comparison) -> list[str]:
    """The problems and settings that the tables are over, one line each."""
    lines = [f"{comparison.problems} problems"]
    if comparison.only_in_one:
        lines.append(f"left out: {comparison.only_in_one} problems that only one run has")
    if comparison.not_judged:
        lines.append(
            f"left out: {comparison.not_judged} problems without a judged sample in one run"
        )
    if any(comparison.unjudged_samples):
        a, b = comparison.unjudged_samples
        lines.append(f"left out: samples without a verdict, {a} of A and {b} of B")
    return lines + [f"settings differ: {line}" for line in comparison.settings]


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    digits = 3 if max(row.a, row.b) >= 0.05 else 5
    return (
        row.name,
        f"{row.a:.{digits}f}",
        f"{row.b:.{digits}f}",
        f"{row.difference:+.{digits}f}",
        interval_text(row.low, row.high, f"+.{digits}f"),
        f"{row.p_value:.2g}",
        f"{row.p_adjusted:.2g}" + ("*" if row.is_significant else ""),
        str(row.problems),
    )
