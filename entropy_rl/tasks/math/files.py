"""Rows of JSONL and parquet files, one at a time, each with its place; problems and answers in
them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

_BATCH = 8192  # rows of a parquet file that are in memory at a time


def read_problems(path: Path, problem_field: str, answer_field: str) -> list[tuple[str, str]]:
    """Problems and answers of a JSONL or parquet file.

    Raises:
      ValueError: If a row is wrong, as `FILE:LINE: what; allowed` or `FILE: row N: what; allowed`.
    """
    rows = []
    for where, row in read_rows(path):
        try:
            require_fields(row, problem_field, answer_field)
            rows.append((take_text(row, problem_field), take_answer(row, answer_field)))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return rows


# --------------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------------


def read_rows(
    path: Path, fields: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL or parquet file.

    Args:
      path: The file; its first bytes say which of the two it is.
      fields: The only fields to read of a parquet file, which must have them; None for all.

    Yields:
      Where the row stands, as `FILE:LINE` or `FILE: row N` from 1, and the row.

    Raises:
      ValueError: If the file has no rows, or one cannot be read.
    """
    rows = _parquet_rows(path, fields) if is_parquet(path) else _jsonl_rows(path)
    empty = True
    for item in rows:
        empty = False
        yield item
    if empty:
        raise ValueError(f"{path}: the file is empty; allowed: at least one row")


def is_parquet(path: Path) -> bool:
    """Tells parquet from JSONL.

    Raises:
      ValueError: If the file is called parquet and is none.
    """
    with path.open("rb") as file:
        found = file.read(4) == b"PAR1"
    if path.suffix == ".parquet" and not found:
        raise ValueError(
            f"{path}: not a parquet file; allowed: a parquet file, or JSONL under another name"
        )
    return found


def count_rows(path: Path) -> int:
    """How many rows a file has; for JSONL how many lines."""
    if is_parquet(path):
        return _open_parquet(path).metadata.num_rows
    lines, end = 0, b"\n"
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            lines, end = lines + block.count(b"\n"), block[-1:]
    return lines + (end != b"\n")


def field_names(path: Path) -> list[str]:
    """The fields of a file: those of a JSONL file are those of its first row."""
    if is_parquet(path):
        return list(_open_parquet(path).schema_arrow.names)
    _, row = next(read_rows(path))
    return list(row)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:  # as bytes: a faulty character is reported with its line
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = _parse(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: {error}") from error
                yield f"{path}:{number}", row


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8; allowed: UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); allowed: one JSON object per line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__} found; allowed: one JSON object per line")
    return row


def _parquet_rows(path: Path, fields: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    file = _open_parquet(path)
    try:
        for batch in file.iter_batches(_BATCH, columns=fields, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    except (OSError, ValueError, NotImplementedError) as error:
        # An error of whoever uses the rows does not come by here: only pyarrow's own do.
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: after row {number}: cannot be read ({reason}); allowed: a whole parquet file"
        ) from error


def _open_parquet(path: Path) -> Any:
    import pyarrow.parquet  # slow to import

    try:
        # Without read-ahead: a row group may be the whole file.
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: cannot be read ({reason}); allowed: a whole parquet file"
        ) from error


# --------------------------------------------------------------------------------------------------
# Fields
# --------------------------------------------------------------------------------------------------


def require_fields(found: Iterable[str], problem_field: str, answer_field: str) -> None:
    """Checks that a row or a file has the two fields.

    Raises:
      ValueError: If one is missing.
    """
    for field, option in ((problem_field, "problem_field"), (answer_field, "answer_field")):
        if field not in found:
            fields = ", ".join(map(repr, found)) or "none"
            raise ValueError(f"no field {field!r}; allowed as {option}: the fields there: {fields}")


def take_text(row: dict[str, Any], field: str) -> str:
    """A text that is not empty.

    Raises:
      ValueError: If it is anything else.
    """
    text = row[field]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field!r} is {text!r:.60}; allowed: a non-empty text")
    _check_unicode(field, text)
    return text


def take_answer(row: dict[str, Any], field: str) -> str:
    """An answer as a text, without blanks around it; a number is written out.

    Raises:
      ValueError: If it is neither.
    """
    answer = row[field]
    if isinstance(answer, Decimal) and answer.is_finite():
        answer = str(int(answer)) if answer == int(answer) else f"{answer.normalize():f}"
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        # Without an exponent: 142.0 is "142".
        answer = str(int(answer)) if answer == int(answer) else f"{Decimal(repr(answer)):f}"
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{field!r} is {answer!r:.60}; allowed: a number, or a non-empty text")
    _check_unicode(field, answer)
    return answer.strip()


def _check_unicode(field: str, text: str) -> None:
    """JSON can hold halves of characters, which can neither be printed nor stored."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{field!r} holds {half!r}, half of a character; allowed: Unicode text"
        ) from error
