"""Atomic file writes and JSON-lines files, with the file name in every error."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import shown
from entropy_rl.config.files import error_text
from entropy_rl.runs.gcs import AnyPath, is_bucket

log = logging.getLogger(__name__)

TEMPORARY = ".tmp"  # at the end of a name: about to become the file without it


def write_atomically(path: AnyPath, text: str) -> None:
    """Replace a file atomically: readers see the old or the new content.

    A symbolic link stays, and the file that it names is replaced.
    """
    if is_bucket(path):  # writes of an object are atomic
        path.write_text(text, encoding="utf-8")
    else:
        _replace(path, [text])


def _replace(path: Path, parts: Iterable[str]) -> None:
    """Replace a local file atomically by a text in parts."""
    if path.is_symlink():
        path = path.resolve()
    # With the process ID, because several processes may write the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with naming(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(parts)
                file.flush()
                # Otherwise a crash of the machine could leave the new name without content.
                os.fsync(file.fileno())
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename == str(temporary):
                raise OSError(error.errno, error.strerror, str(path)) from error
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
    """Read the complete lines of a JSONL file, without a truncated last line.

    Raises:
      ValueError: A complete line is not a JSON object; names file and line.
    """
    return [_parse(path, number, line) for number, line in complete_lines(path)]


def complete_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their ends and their numbers; none if the file does not exist."""
    if path.exists():
        with path.open("rb") as file:
            yield from ((n, line) for n, line in enumerate(file, 1) if line.endswith(b"\n"))


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.removesuffix(b"\n").decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: must be JSON, got {error_text(error)}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: must be a JSON object, got {shown(row, 60)}")
    return row


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file.

    Raises:
      OSError: With the file's name, if they cannot be written; at most a partial line is left.
    """
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.writelines(_line(row) for row in rows)


def cut_broken_line(path: Path) -> None:
    """Truncate an incomplete last line, so that the next one starts on a new line."""
    if not path.exists():
        return
    with naming(path), path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def keep_steps(
    path: Path,
    last_step: int,
    translate: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    once: bool = False,
) -> set[int]:
    """Drop the lines after a step, because a resumed run repeats those steps.

    Args:
      path: A JSONL file, ordered by steps; nothing happens if it does not exist.
      last_step: The last step to keep.
      translate: Applied to the rows; where it changes one, the file is written again.
      once: Whether a step has at most one row.

    Returns:
      The steps that are kept.

    Raises:
      ValueError: A line is damaged and may be of a step that is kept, or such a step comes after a
        later one; names file and line.
    """
    # Samples may be many GB: no more than a line is held.
    steps: set[int] = set()
    latest = lines = size = 0  # lines and bytes to keep, which are the first ones
    translated = False
    for number, line in complete_lines(path):
        try:
            row = _parse(path, number, line)
            if type(row.get("step")) is not int:
                raise ValueError(
                    f"{path}:{number}: step: must be an integer, got {shown(row.get('step'), 60)}"
                )
        except ValueError:
            if _step_of_damaged(line, latest + 1 if once else max(latest, 1)) <= last_step:
                raise
            log.warning("%s:%d: damaged, and dropped because its step is repeated", path, number)
            continue
        latest = row["step"]
        if latest > last_step:
            continue
        if lines < number - 1:
            raise ValueError(
                f"{path}:{number}: step: must be > {last_step}, as in the lines before it, got "
                f"{latest}"
            )
        steps.add(latest)
        lines, size = number, size + len(line)
        translated = translated or translate(row) != row
    if translated:
        kept = itertools.islice(complete_lines(path), lines)
        _replace(path, (_line(translate(_parse(path, number, line))) for number, line in kept))
    elif path.exists():
        with naming(path), path.open("rb+") as file:
            file.truncate(size)
    return steps


def _step_of_damaged(line: bytes, least: int) -> int:
    """Return the step of a damaged line: its own if that is readable, or the least possible one."""
    found = re.match(rb'\{"step": ([0-9]{1,9}),', line)
    return int(found[1]) if found else least


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
