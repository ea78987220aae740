"""The samples of an evaluation on disk: one JSON line each, never lost, never twice.

Several processes may share a directory, each with a part of the problems and a file of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from entropy_rl.evaluation.result import Evaluation
from entropy_rl.experience.records import Row
from entropy_rl.runs.directory import SAMPLES_FILE
from entropy_rl.runs.jsonl import naming, write_atomically
from entropy_rl.tasks.task import Verdict

RESULT_FILE = "evaluation.json"
_FIELDS = {
    "problem",
    "sample",
    "prompt",
    "right_answer",
    "answer",
    "verdict",
    "length",
    "tokens",
    "entropy",
}


def samples_file(directory: Path, shard: int, shards: int) -> Path:
    """The file of one of several processes; a single one has samples.jsonl."""
    if shards == 1:
        return directory / SAMPLES_FILE
    stem, _, suffix = SAMPLES_FILE.partition(".")
    return directory / f"{stem}-{shard:05}-of-{shards:05}.{suffix}"


def read_samples(directory: Path) -> Iterator[Row]:
    """All samples of an evaluation, file by file, line by line.

    Args:
      directory: Of the evaluation.

    Yields:
      The complete lines; one that was cut off while being written is left out.

    Raises:
      ValueError: If a complete line is no sample.
    """
    stem, _, suffix = SAMPLES_FILE.partition(".")
    for path in sorted(directory.glob(f"{stem}*.{suffix}")):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    missing = _FIELDS - set(row)
                    hash((row["problem"], row["sample"]))
                    Verdict(row["verdict"])
                    if any(None in row.get(name, ()) for name in ("entropy", "log_probs")):
                        raise ValueError("an entropy or log-prob is not finite")
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}:{number}: this is no sample ({error})") from error
                if missing:
                    raise ValueError(
                        f"{path}:{number}: this is no sample (without {min(missing)!r})"
                    )
                yield row


def cut_broken_line(path: Path) -> None:
    """Drops a last line that was cut off while being written, so that the next one begins a
    line.
    """
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


def write_result(directory: Path, evaluation: Evaluation) -> None:
    """Writes evaluation.json."""
    write_atomically(directory / RESULT_FILE, json.dumps(evaluation.to_plain(), indent=1) + "\n")


def read_result(directory: Path) -> Evaluation | None:
    """Reads evaluation.json; None where the evaluation is not there, or not complete.

    Raises:
      ValueError: If it cannot be read.
    """
    path = directory / RESULT_FILE
    if not path.exists():
        return None
    try:
        return Evaluation.from_plain(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: this is no result of an evaluation ({error})") from error
