"""Problems and answers from a user's own files."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path


def read_problems(path: Path, problem_field: str, answer_field: str) -> list[tuple[str, str]]:
    """Problems and answers of a JSONL file."""
    rows = []
    with path.open("rb") as file:  # as bytes: a faulty character is reported with its line
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(_row(line, problem_field, answer_field))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    if not rows:
        raise ValueError(f"{path}:1: the file is empty; allowed: one JSON object per line, at least one")
    return rows


def _row(line: bytes, problem_field: str, answer_field: str) -> tuple[str, str]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8; allowed: UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); allowed: one JSON object per line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__} found; allowed: one JSON object per line")
    for field, option in ((problem_field, "problem_field"), (answer_field, "answer_field")):
        if field not in row:
            fields = ", ".join(map(repr, row)) or "none"
            raise ValueError(f"no field {field!r}; allowed as task.args.{option}: the fields there: {fields}")
    problem, answer = row[problem_field], row[answer_field]
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"{problem_field!r} is {problem!r:.60}; allowed: a non-empty text")
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        # Written out, without an exponent: 142.0 is "142".
        answer = str(int(answer)) if answer == int(answer) else f"{Decimal(repr(answer)):f}"
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{answer_field!r} is {answer!r:.60}; allowed: a number, or a non-empty text")
    return problem, answer.strip()
