"""Samples and results of an evaluation on disk.

Samples are JSON lines. Several processes may share a directory, each with a shard of the problems
and its own file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from entropy_rl.config.files import error_text
from entropy_rl.evaluation.result import Evaluation
from entropy_rl.experience.records import Row
from entropy_rl.runs.directory import CONFIG_FILE, SAMPLES_FILE
from entropy_rl.runs.jsonl import write_atomically
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


def has_samples(directory: Path) -> bool:
    """Whether an evaluation has its samples, which users may have deleted, as they are large."""
    stem, _, suffix = SAMPLES_FILE.partition(".")
    return any(path.stat().st_size for path in directory.glob(f"{stem}*.{suffix}"))


def refuse_run(output: Path) -> None:
    """Refuse to write into the directory of a run or of an evaluation.

    Raises:
      ValueError: It is one.
    """
    if any((output / name).exists() for name in (RESULT_FILE, CONFIG_FILE)):
        raise ValueError(f"output: must not be the directory of a run, got {output}")


def samples_file(directory: Path, shard: int, shards: int) -> Path:
    """The samples file of a shard; samples.jsonl if there is only one."""
    if shards == 1:
        return directory / SAMPLES_FILE
    stem, _, suffix = SAMPLES_FILE.partition(".")
    return directory / f"{stem}-{shard:05}-of-{shards:05}.{suffix}"


def read_samples(directory: Path) -> Iterator[Row]:
    """Read all samples of an evaluation, in the order of files and lines.

    Args:
      directory: Directory of the evaluation.

    Yields:
      The samples; an incomplete last line is left out.

    Raises:
      ValueError: A complete line is not a sample.
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
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise ValueError(
                        f"{path}:{number}: must be a sample ({error_text(error)})"
                    ) from error
                if missing:
                    raise ValueError(
                        f"{path}:{number}: must be a sample, got none of field {min(missing)!r}"
                    )
                yield row


def write_result(directory: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json."""
    write_atomically(directory / RESULT_FILE, json.dumps(evaluation.to_plain(), indent=1) + "\n")


def read_result(directory: Path) -> Evaluation | None:
    """Read evaluation.json; None if the evaluation does not exist or is not complete.

    Raises:
      ValueError: The file is not an evaluation result.
    """
    path = directory / RESULT_FILE
    if not path.exists():
        return None
    try:
        return Evaluation.from_plain(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: must be an evaluation result ({error_text(error)})") from error
