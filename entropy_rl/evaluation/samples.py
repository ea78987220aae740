"""Samples and results of an evaluation on disk.

Samples are JSON lines. Several processes may share a directory, each with a shard of the problems
and its own file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from entropy_rl.config.checks import at_place
from entropy_rl.config.files import error_text
from entropy_rl.evaluation.check_sample import check_sample
from entropy_rl.evaluation.result import Evaluation
from entropy_rl.experience.records import Row
from entropy_rl.runs.directory import CONFIG_FILE, SAMPLES_FILE
from entropy_rl.runs.jsonl import complete_lines, write_atomically
from entropy_rl.runs.lock import LOCK_FILE, check_unlocked, one_writer

RESULT_FILE = "evaluation.json"


def has_samples(directory: Path) -> bool:
    """Whether an evaluation has its samples, which users may have deleted, as they are large."""
    return any(path.stat().st_size for path in find_samples_files(directory))


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


def find_samples_files(directory: Path) -> list[Path]:
    """The samples files of all shards, sorted."""
    stem, _, suffix = SAMPLES_FILE.partition(".")
    return sorted(directory.glob(f"{stem}*.{suffix}"))


def exclusive(file: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a samples file against other writers.

    Raises:
      ValueError: Another process holds the lock; each needs its own shard.
    """
    return one_writer(_lock_of(file), str(file))


def check_free(file: Path) -> None:
    """Check that no process writes to a samples file; see `exclusive`."""
    check_unlocked(_lock_of(file), str(file))


def _lock_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.{LOCK_FILE}")


def read_samples(directory: Path) -> Iterator[Row]:
    """Read all samples of an evaluation, in the order of files and lines.

    Args:
      directory: Directory of the evaluation.

    Yields:
      The samples; an incomplete last line is left out.

    Raises:
      ValueError: A complete line is not a sample.
    """
    for path in find_samples_files(directory):
        for number, line in complete_lines(path):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}:{number}: must be a sample ({error_text(error)})"
                ) from error
            with at_place(f"{path}:{number}"):
                check_sample(row)
            yield row


def read_samples_once(directory: Path) -> Iterator[Row]:
    """Read all samples of an evaluation, as `read_samples`.

    Raises:
      ValueError: A complete line is not a sample, or a sample is there twice.
    """
    seen = set()
    for row in read_samples(directory):
        sample = (row["problem"], row["sample"])
        if sample in seen:
            raise ValueError(
                f"{directory}: must hold every sample once, got sample {sample[1]} of problem "
                f"{sample[0]} twice; processes with different shard counts wrote at the same time, "
                "keep one of their samples files"
            )
        seen.add(sample)
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
        return Evaluation.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: must be an evaluation result ({error_text(error)})") from error
