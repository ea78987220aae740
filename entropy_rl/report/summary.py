"""Tables of evaluations, and the summary printed at the end of a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from entropy_rl.config.extras import install_command
from entropy_rl.evaluation import Evaluation, read_result
from entropy_rl.report.curves import write_curves
from entropy_rl.report.terminal import interval_text
from entropy_rl.runs.directory import EVALUATIONS_DIRECTORY, SAMPLES_FILE

_FEW_PROBLEMS = 30  # with fewer, bootstrap intervals of 95% cover in at most 0.9 of simulations


def run_summary(directory: Path, steps: int) -> str:
    """Summarize a finished run, and draw its training curves.

    Args:
      directory: The run.
      steps: Its last step.

    Returns:
      Text for the terminal: the first and last evaluation, the path of the curves, and the next
      commands.
    """
    parts = []
    evaluations = directory / EVALUATIONS_DIRECTORY
    columns = {f"step {step}": read_result(evaluations / str(step)) for step in (0, steps)}
    columns = {heading: found for heading, found in columns.items() if found is not None}
    if columns:
        parts.append(evaluation_table(columns))
        parts.append(
            "One run with one seed shows that the machinery works, not which method is better."
        )
    try:
        parts.append(f"curves:  {write_curves(directory)}")
    except ValueError as error:
        parts.append(f"curves:  not drawn, {error}")
    except ImportError:
        parts.append(
            f"curves:  not drawn, matplotlib is not installed; `{install_command('report')}`"
        )
    parts.append(f"samples: {directory / SAMPLES_FILE}")
    of_shell = shlex.quote(str(directory))
    parts.append(f"report:  entropy-rl report {of_shell} --output report.html")
    parts.append(f"export:  entropy-rl export --model {of_shell} --output DIRECTORY")
    return "\n\n".join(parts[:-3]) + "\n" + "\n".join(parts[-3:])


def evaluation_table(columns: Mapping[str, Evaluation]) -> str:
    """Format evaluations side by side: Pass@K, length, entropy and the task's skill measures.

    Args:
      columns: Heading -> evaluation.

    Returns:
      Aligned plain text, with 95% intervals over problems in brackets.
    """
    rows = evaluation_rows(columns)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    note = f"In brackets: {interval_note(list(columns.values()))}"
    return "\n".join([note, *(line.rstrip() for line in lines)])


def interval_note(evaluations: Sequence[Evaluation]) -> str:
    """What the intervals of `evaluation_rows` are."""
    note = "95% interval over problems"
    if min(e.problems for e in evaluations) < _FEW_PROBLEMS:
        note += f", too narrow with fewer than {_FEW_PROBLEMS} (but for Pass@K, avg@n, maj@n)"
    return note


def evaluation_rows(columns: Mapping[str, Evaluation]) -> list[list[str]]:
    """The cells of `evaluation_table`; the first row holds the headings."""
    evaluations = list(columns.values())
    rows = [
        ["", *columns],
        ["problems x samples", *(f"{e.problems} x {e.samples}" for e in evaluations)],
    ]
    for k in sorted({k for e in evaluations for k in e.pass_at_k}):
        rows.append([f"Pass@{k}", *(_pass_at_k(e, k) for e in evaluations)])
    for source in dict.fromkeys(source for e in evaluations for source in e.by_source):
        largest = max((k for e in evaluations for k in e.by_source.get(source, {})), default=1)
        for k in dict.fromkeys((1, largest)):
            rows.append([f"Pass@{k}, {source}", *(_pass_at_k(e, k, source) for e in evaluations)])
    rows.append(["avg@n", *(_interval(e.avg_at_n, ".3f") for e in evaluations)])
    rows.append(["maj@n", *(_interval(e.maj_at_n, ".3f") for e in evaluations)])
    if any(e.answered is not None for e in evaluations):
        cells = ("-" if e.answered is None else f"{e.answered:.3f}" for e in evaluations)
        rows.append(["answered (others: no vote)", *cells])
    rows.append(["unique answers", *map(_unique_answers, evaluations)])
    for n in dict.fromkeys(n for e in evaluations for n in e.distinct):
        rows.append([f"distinct-{n}", *(_interval(e.distinct.get(n), ".4f") for e in evaluations)])
    rows.append(["repetition of 4-grams", *(_interval(e.repetition, ".3f") for e in evaluations)])
    rows.append(
        ["response length (tokens)", *(_interval(e.mean_length, ".1f") for e in evaluations)]
    )
    rows.append(
        ["entropy (nats per token)", *(_interval(e.mean_entropy, ".3f") for e in evaluations)]
    )
    rows.append(["cut off at the limit", *(f"{e.truncated:.3f}" for e in evaluations)])
    for name in dict.fromkeys(name for e in evaluations for name in e.grades):
        rows.append([name, *(_interval(e.grades.get(name), ".3f") for e in evaluations)])
    for name in dict.fromkeys(name for e in evaluations for name in e.skill):
        cells = (f"{e.skill[name]:.3f}" if name in e.skill else "-" for e in evaluations)
        rows.append([name.replace("_", " "), *cells])
    return rows


def _pass_at_k(evaluation: Evaluation, k: int, source: str | None = None) -> str:
    curve, counts = evaluation.pass_at_k, evaluation.pass_at_k_problems
    if source is not None:
        curve = evaluation.by_source.get(source, {})
        counts = evaluation.by_source_problems.get(source, {})
    return _of_problems(_interval(curve.get(k), ".3f"), counts.get(k), evaluation)


def _unique_answers(evaluation: Evaluation) -> str:
    cell = _interval(evaluation.unique_answers, ".3f")
    return _of_problems(cell, evaluation.answered_problems or None, evaluation)


def _of_problems(cell: str, problems: int | None, evaluation: Evaluation) -> str:
    """The cell, with the number of problems that it is over if they are not all."""
    return cell if problems in (None, evaluation.problems) else f"{cell} ({problems} problems)"


def _interval(value: tuple[float, float, float] | None, form: str) -> str:
    if value is None:
        return "-"
    estimate, low, high = value
    return f"{estimate:{form}} {interval_text(low, high, form)}"
