"""The published math sets, and prepared sets on disk: where they lie, and reading them.

Importing this is light; TFDS is imported when a prepared set is read.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from entropy_rl.config.registry import unknown
from entropy_rl.tasks.math.files import read_problems

VERSION = "1.0.0"  # of what the builders write; a change makes prepared sets count as not prepared
USER = "user_maths"  # the TFDS data set of the user's own sets
USER_SPLIT = "train"  # their only split

# DAPO's prompt, arXiv 2503.14476: in its data set every problem is stored inside it.
DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a published set, which becomes one split."""

    split: str  # "train": to learn from; "test": to evaluate on, whatever its repository calls it
    path: str  # in the repository
    rows: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class MathSet:
    """A published set: where it is, and what is known about it."""

    name: str
    title: str
    repository: str  # a data set of the Hugging Face hub
    revision: str
    files: tuple[SourceFile, ...]
    license: str | None  # None: its card states none
    unconfirmed: str  # what is only said of it, and seen when a file is prepared

    @property
    def splits(self) -> tuple[str, ...]:
        """Its splits."""
        return tuple(file.split for file in self.files)

    @property
    def role(self) -> str:
        """What it is for."""
        return "both" if len(self.files) > 1 else {"train": "train", "test": "eval"}[self.splits[0]]

    def address(self, file: SourceFile) -> str:
        """Where a browser finds a file."""
        return (
            f"https://huggingface.co/datasets/{self.repository}/resolve/{self.revision}/{file.path}"
        )


_SETS = (
    MathSet(
        name="dapo_math_17k",
        title="DAPO-Math-17k",
        repository="BytedTsinghua-SIA/DAPO-Math-17k",
        revision="65877096c24ffa7abc4e4fa5edb95cf3413a5674",
        files=(
            SourceFile(
                split="train",
                path="data/dapo-math-17k.parquet",
                rows=1_791_700,
                sha256="534375d6bb8630d22ab46a56e11f2ffec1d288d8f7d04099bc82d68948705941",
            ),
        ),
        license="Apache-2.0",
        unconfirmed="17,917 indices, each in 100 rows; some 17,200 different problems; integer answers",
    ),
    MathSet(
        name="math_500",
        title="MATH-500",
        repository="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        files=(
            SourceFile(
                split="test",
                path="test.jsonl",
                rows=500,
                sha256="35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
            ),
        ),
        license=None,
        unconfirmed="the license; MATH, which it is taken from, has MIT",
    ),
    MathSet(
        name="aime_2024",
        title="AIME 2024 (I and II)",
        repository="HuggingFaceH4/aime_2024",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        files=(
            SourceFile(
                split="test",
                path="data/train-00000-of-00001.parquet",
                rows=30,
                sha256="26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf",
            ),
        ),
        license=None,
        unconfirmed="whether answers have leading zeros; they are removed",
    ),
    MathSet(
        name="aime_2025",
        title="AIME 2025 (I and II)",
        repository="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        files=(
            SourceFile(
                split="test",
                path="test.jsonl",
                rows=30,
                sha256="b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",
            ),
        ),
        license="Apache-2.0",
        unconfirmed="whether every answer is a bare integer; a degree sign is removed",
    ),
    MathSet(
        name="amc_2023",
        title="AMC 12 of 2022 and 2023 (the 83 problems that papers call AMC23)",
        repository="AI-MO/aimo-validation-amc",
        revision="69d78a4a2c840e82d69af6bc742bda09005f6316",
        files=(
            SourceFile(
                split="test",
                path="data/train-00000-of-00001.parquet",
                rows=83,
                sha256="4de056fd006062cee46e3900727dd5d00094b8592ed0bfd6b5dfae2267f72dd7",
            ),
        ),
        license="Apache-2.0",
        unconfirmed="that answers are stored as floats, 142.0 for 142",
    ),
    MathSet(
        name="gsm8k",
        title="GSM8K",
        repository="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        files=(
            SourceFile(
                split="train",
                path="main/train-00000-of-00001.parquet",
                rows=7473,
                sha256="ea82612ea9582142387730c793eb67d3b12849002bc0b7fa6f8efafa7351419d",
            ),
            SourceFile(
                split="test",
                path="main/test-00000-of-00001.parquet",
                rows=1319,
                sha256="ee7b8da9e381df27b9e3f7758a159ab2bdaa4dbaa910546cbbc47e0cb44e4f59",
            ),
        ),
        license="MIT",
        unconfirmed="",
    ),
)
PUBLISHED = {published.name: published for published in _SETS}


# --------------------------------------------------------------------------------------------------
# Where prepared sets lie
# --------------------------------------------------------------------------------------------------


def data_root(data_dir: str | None) -> Path:
    """The directory of all prepared sets; None is TFDS' own.

    Raises:
      ValueError: If it is an address rather than a path.
    """
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in given:
        raise ValueError(
            f"data_dir: {given!r} is not allowed; allowed: a directory of this machine"
        )
    path = Path(given).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"data_dir: {given!r} is no directory; allowed: one, or a path where one can be made"
        )
    return path


def set_directory(name: str, data_dir: str | None) -> Path:
    """Where a set lies once it is prepared."""
    root = data_root(data_dir)
    return (root if name in PUBLISHED else root / USER) / name / VERSION


def read_metadata(name: str, data_dir: str | None) -> dict[str, Any] | None:
    """What was noted when a set was prepared; None where it is not prepared.

    Raises:
      ValueError: If it is there and cannot be read.
    """
    directory = set_directory(name, data_dir)
    if not (directory / "dataset_info.json").is_file():
        return None
    try:
        metadata = json.loads((directory / "metadata.json").read_text())
        metadata["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{directory}: not a set that `entropy-rl data prepare` wrote ({error!r:.80}); "
            "allowed: prepare "
            "it again with --overwrite true, or another data_dir"
        ) from error
    return metadata


def prepared_names(data_dir: str | None) -> list[str]:
    """The prepared sets: the published ones in their order, then the user's by name."""
    own = sorted(path.parent.name for path in (data_root(data_dir) / USER).glob(f"*/{VERSION}"))
    return [name for name in [*PUBLISHED, *own] if _is_prepared(name, data_dir)]


def _is_prepared(name: str, data_dir: str | None) -> bool:
    try:
        return read_metadata(name, data_dir) is not None
    except ValueError:  # somebody else's, or broken: that is told to whoever names it
        return False


def splits_by_role(name: str, splits: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(split, "train" or "test") for all that the splits of a set are used as; a user's is used as
    both.
    """
    for split in splits:
        yield from [(split, split)] if name in PUBLISHED else [(split, "train"), (split, "test")]


def prepare_command(name: str, data_dir: str | None) -> str:
    """The command that prepares a published set."""
    return f"entropy-rl data prepare {name}" + (f" --data_dir {data_dir}" if data_dir else "")


# --------------------------------------------------------------------------------------------------
# What a user names: a file, or a prepared set
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """Where problems come from: a file, or one split of a prepared set."""

    title: str  # for a person
    path: Path  # the file, or the directory of the set
    split: str | None  # of the set; None for a file


def find_source(where: str, given: str, role: str | None, data_dir: str | None) -> Source:
    """Finds what a user named.

    Args:
      where: Dotted path of the setting, for the error.
      given: A file, or the name of a prepared set.
      role: "train" or "test": which split of a set with two, such as gsm8k. A set with one gives
        that. None for the first that is prepared.
      data_dir: Where prepared sets lie; None for TFDS' own place.

    Raises:
      ValueError: If there is neither, or both.
    """
    metadata = read_metadata(given, data_dir) if _can_be_a_name(given) else None
    is_set = metadata is not None or given in PUBLISHED
    if Path(given).is_file():
        if is_set:
            raise ValueError(
                f"{where}: {given!r} is a file and a set; allowed: './{given}' for the file"
            )
        return Source(given, Path(given), None)
    if metadata is None and is_set:
        raise ValueError(
            f"{where}: {given!r} is not prepared in {data_root(data_dir)}; allowed after "
            f"`{prepare_command(given, data_dir)}`"
        )
    if metadata is None:
        names = list(dict.fromkeys([*PUBLISHED, *prepared_names(data_dir)]))
        advice = unknown(where, given, names).rpartition(" is not allowed; ")[2]
        raise ValueError(
            f"{where}: {given!r} is not a file, nor a prepared set; {advice}, a JSONL or parquet "
            "file"
        )
    published = PUBLISHED[given].splits if given in PUBLISHED else (USER_SPLIT,)
    splits = tuple(metadata["splits"]) if role is None else published
    split = role if role in splits else splits[0]
    if split not in metadata["splits"]:
        raise ValueError(
            f"{where}: {given!r} was prepared without its split {split!r}; allowed after "
            f"`{prepare_command(given, data_dir)} --overwrite true`"
        )
    return Source(f"{given} ({split})", set_directory(given, data_dir), split)


def _can_be_a_name(given: str) -> bool:
    return given not in ("", ".", "..") and not any(sign in given for sign in "/\\\0")


def read_source(source: Source, problem_field: str, answer_field: str) -> list[tuple[str, str]]:
    """Problems and answers of a source, in the order of its file; the fields are those of a file.

    Raises:
      ValueError: If a row is wrong, as `FILE:LINE: what; allowed`.
    """
    if source.split is None:
        return read_problems(source.path, problem_field, answer_field)
    return [(row["problem"], row["answer"]) for row in read_prepared(source.path, source.split)]


def read_prepared(directory: Path, split: str) -> list[dict[str, Any]]:
    """The rows of one split of a prepared set, by id, which is the order of the published file.

    Raises:
      ValueError: If it is damaged.
    """
    import tensorflow_datasets as tfds  # slow to import

    try:
        rows = list(tfds.builder_from_directory(directory).as_data_source(split))
    except Exception as error:  # of TFDS, array_record or the system, each its own
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise ValueError(
            f"{directory}: this prepared set is damaged ({reason:.80}); allowed: prepare it again "
            "with "
            "--overwrite true"
        ) from error
    # TFDS may write in another order than it was given; texts come back as bytes.
    return sorted(
        (
            {name: v.decode() if isinstance(v, bytes) else v for name, v in row.items()}
            for row in rows
        ),
        key=lambda row: row["id"],
    )
