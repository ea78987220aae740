"""Atomic file writes and JSON-lines files, with the file name in every error."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from entropy_rl.runs.gcs import AnyPath, is_bucket

TEMPORARY = ".tmp"  # at the end of a name: about to become the file without it


def write_atomically(path: AnyPath, text: str) -> None:
    """Replace a file atomically: readers see the old or the new content."""
    if is_bucket(path):  # writes of an object are atomic
        path.write_text(text)
        return
    # With the process ID, because several processes may write the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with naming(path):
        try:
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                # Otherwise a crash of the machine could leave the new name without content.
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to an OSError that lacks it, as those of `write` do."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.strerror is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSONL file, without a truncated last line."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file.

    Raises:
      OSError: With the file's name, if they cannot be written; at most a partial line is left.
    """
    with naming(path), path.open("a") as file:
        file.writelines(_line(row) for row in rows)


def keep_steps(
    path: Path,
    last_step: int,
    read: Callable[[Path], list[dict[str, Any]]] = read_jsonl,
) -> None:
    """Drop the lines after a step, because a resumed run repeats those steps.

    Args:
      path: A JSONL file; nothing happens if it does not exist.
      last_step: The last step to keep.
      read: Reads the lines that are written again.
    """
    rows = [row for row in read(path) if row["step"] <= last_step]
    if path.exists():
        write_atomically(path, "".join(_line(row) for row in rows))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite(row)) + "\n"


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None in a nested plain value."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
