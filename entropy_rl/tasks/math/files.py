"""Read problems and answers from JSONL and parquet files, one row at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

_BATCH = 8192  # rows of a parquet file that are in memory at a time


def read_problems(path: Path, problem_field: str, answer_field: str) -> list[tuple[str, str]]:
    """Reads the problems and answers of a JSONL or parquet file.

    Raises:
      ValueError: If a row is invalid, as `FILE:LINE: ...` or `FILE: row N: ...`.
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
    """Iterates over the rows of a JSONL or parquet file.

    Args:
      path: The file; its first bytes tell which of the two it is.
      fields: Columns to read from a parquet file, which must have them; None for all.

    Yields:
      The location, `FILE:LINE` or `FILE: row N` counted from 1, and the row.

    Raises:
      ValueError: If the file has no rows, or a row cannot be read.
    """
    rows = _parquet_rows(path, fields) if is_parquet(path) else _jsonl_rows(path)
    empty = True
    for item in rows:
        empty = False
        yield item
    if empty:
        raise ValueError(f"{path}: must have at least one row, got an empty file")


def is_parquet(path: Path) -> bool:
    """Whether a file is parquet rather than JSONL.

    Raises:
      ValueError: If the file has the suffix .parquet and other content.
    """
    with path.open("rb") as file:
        found = file.read(4) == b"PAR1"
    if path.suffix == ".parquet" and not found:
        raise ValueError(f"{path}: must be a parquet file, as its name says, got other content")
    return found


def count_rows(path: Path) -> int:
    """Counts the rows of a file; for JSONL its lines."""
    if is_parquet(path):
        return _open_parquet(path).metadata.num_rows
    lines, end = 0, b"\n"
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            lines, end = lines + block.count(b"\n"), block[-1:]
    return lines + (end != b"\n")


def field_names(path: Path) -> list[str]:
    """The field names of a file; for JSONL those of its first row."""
    if is_parquet(path):
        return list(_open_parquet(path).schema_arrow.names)
    _, row = next(read_rows(path))
    return list(row)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:  # bytes, so that an invalid byte is reported with its line
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
        raise ValueError(f"must be UTF-8 text, got an invalid byte at {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be one JSON object per line, got invalid JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"must be one JSON object per line, got {type(row).__name__}")
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
        # Only errors of pyarrow arrive here: those of the consumer are raised outside.
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: must be a complete parquet file, got an error after row {number} ({reason})"
        ) from error


def _open_parquet(path: Path) -> Any:
    import pyarrow.parquet  # slow to import

    try:
        # Without read-ahead: a row group may be the whole file.
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: must be a complete parquet file, got an error ({reason})"
        ) from error


# --------------------------------------------------------------------------------------------------
# Fields
# --------------------------------------------------------------------------------------------------


def require_fields(found: Iterable[str], problem_field: str, answer_field: str) -> None:
    """Checks that a row or a file has both fields.

    Raises:
      ValueError: If one is missing.
    """
    for field, option in ((problem_field, "problem_field"), (answer_field, "answer_field")):
        if field not in found:
            fields = ", ".join(map(repr, found)) or "none"
            raise ValueError(f"{option}: must be one of {fields}, got {field!r}")


def take_text(row: dict[str, Any], field: str) -> str:
    """Returns a field that must be a non-empty text.

    Raises:
      ValueError: If it is anything else.
    """
    text = row[field]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field!r}: must be a non-empty text, got {text!r:.60}")
    _check_unicode(field, text)
    return text


def take_answer(row: dict[str, Any], field: str) -> str:
    """Returns an answer as a stripped text; a number is written without an exponent.

    Raises:
      ValueError: If it is neither a text nor a finite number.
    """
    answer = row[field]
    if isinstance(answer, Decimal) and answer.is_finite():
        answer = str(int(answer)) if answer == int(answer) else f"{answer.normalize():f}"
    if isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer):
        # Without an exponent: 142.0 is "142".
        answer = str(int(answer)) if answer == int(answer) else f"{Decimal(repr(answer)):f}"
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{field!r}: must be a number or a non-empty text, got {answer!r:.60}")
    _check_unicode(field, answer)
    return answer.strip()


def _check_unicode(field: str, text: str) -> None:
    """Refuses lone surrogates, which JSON can hold but which cannot be printed or stored."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{field!r}: must be Unicode text, got the lone surrogate {half!r}"
        ) from error
