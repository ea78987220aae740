"""Evaluations on disk, and as a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from entropy_rl.evaluation import Evaluation
from entropy_rl.files import write_atomically


def write_evaluation(directory: Path, step: int, evaluation: Evaluation) -> None:
    """Writes evaluations/STEP.json of a run."""
    path = _path(directory, step)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(evaluation.to_plain(), indent=1) + "\n")


def read_evaluation(directory: Path, step: int) -> Evaluation | None:
    """Reads evaluations/STEP.json of a run; None if that step has not been evaluated."""
    path = _path(directory, step)
    if not path.exists():
        return None
    plain = json.loads(path.read_text())
    return Evaluation.from_plain(plain)


def evaluation_table(columns: Mapping[str, Evaluation]) -> str:
    """Evaluations side by side: Pass@K, length, entropy and the task's skill measures.

    Args:
      columns: Heading -> evaluation.

    Returns:
      Aligned plain text. Intervals are 95% bootstrap intervals over problems.
    """
    evaluations = list(columns.values())
    rows = [["", *columns]]
    for k in evaluations[0].pass_at_k:
        rows.append([f"Pass@{k}", *(_pass_at_k(e, k) for e in evaluations)])
    rows.append(["response length (tokens)", *(_interval(e.mean_length, ".1f") for e in evaluations)])
    rows.append(["entropy (nats per token)", *(_interval(e.mean_entropy, ".3f") for e in evaluations)])
    rows.append(["cut off at the limit", *(f"{e.truncated:.3f}" for e in evaluations)])
    for name in evaluations[0].skill:
        cells = (f"{e.skill[name]:.3f}" if name in e.skill else "-" for e in evaluations)
        rows.append([name.replace("_", " "), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    first = evaluations[0]
    title = f"{first.problems} problems x {first.samples} samples; in brackets: 95% interval over problems"
    return "\n".join([title, *(line.rstrip() for line in lines)])


def _pass_at_k(evaluation: Evaluation, k: int) -> str:
    cell = _interval(evaluation.pass_at_k.get(k), ".3f")
    problems = evaluation.pass_at_k_problems.get(k, evaluation.problems)
    return cell if problems == evaluation.problems else f"{cell} ({problems} problems)"


def _path(directory: Path, step: int) -> Path:
    return directory / "evaluations" / f"{step}.json"


def _interval(value: tuple[float, float, float] | None, form: str) -> str:
    if value is None:
        return "-"
    estimate, low, high = (format(x, form) for x in value)
    return f"{estimate} [{low}, {high}]"
