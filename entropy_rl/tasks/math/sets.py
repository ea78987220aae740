"""Prepared sets on disk, and where the problems of a split come from.

Importing this is cheap; TFDS is imported when a prepared set is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import shown
from entropy_rl.tasks.data_files.files import find_data_files
from entropy_rl.tasks.math.catalog import PUBLISHED
from entropy_rl.tasks.math.examples import Example, Examples, read_examples

VERSION = "1.0.0"  # format of the builders' output; a change invalidates prepared sets
USER = "user_maths"  # the TFDS data set of all user sets
USER_SPLIT = "train"  # their only split


# --------------------------------------------------------------------------------------------------
# Directories of prepared sets
# --------------------------------------------------------------------------------------------------


def data_root(data_dir: str | None) -> Path:
    """The directory of all prepared sets; None is the default of TFDS.

    Raises:
      ValueError: If it is a URL or a file, or in the home directory of a user without one.
    """
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in given:
        raise ValueError(f"data_dir: must be a directory on this machine, got {given!r}")
    path = Path(os.path.expanduser(given))
    if path.parts[:1] == ("~",):
        raise ValueError(f"data_dir: must be absolute without a home directory, got {given!r}")
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"data_dir: must be a directory or a path that does not exist, got the file {given!r}"
        )
    return path


def set_directory(name: str, data_dir: str | None) -> Path:
    """The directory of a prepared set."""
    root = data_root(data_dir)
    return (root if name in PUBLISHED else root / USER) / name / VERSION


def read_metadata(name: str, data_dir: str | None) -> dict[str, Any] | None:
    """The metadata of a prepared set; None if it is not prepared.

    Raises:
      ValueError: If the set exists and cannot be read.
    """
    directory = set_directory(name, data_dir)
    if not (directory / "dataset_info.json").is_file():
        return None
    try:
        metadata = json.loads((directory / "metadata.json").read_text(encoding="utf-8"))
        metadata["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{directory}: must be a set written by `entropy-rl data prepare`, got {error!r:.80}; "
            "prepare it again with --overwrite true, or set another data_dir"
        ) from error
    return metadata


def prepared_names(data_dir: str | None) -> list[str]:
    """The names of prepared sets: published ones in their order, then user sets by name."""
    own = sorted(path.parent.name for path in (data_root(data_dir) / USER).glob(f"*/{VERSION}"))
    return [name for name in [*PUBLISHED, *own] if _is_prepared(name, data_dir)]


def _is_prepared(name: str, data_dir: str | None) -> bool:
    try:
        return read_metadata(name, data_dir) is not None
    except ValueError:  # written by another program, or damaged: reported when it is named
        return False


def splits_by_role(name: str, splits: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs (split, "train" or "test") for the uses of the splits; user sets have both uses."""
    for split in splits:
        yield from [(split, split)] if name in PUBLISHED else [(split, "train"), (split, "test")]


def prepare_command(name: str, data_dir: str | None) -> str:
    """The command that prepares a published set."""
    return f"entropy-rl data prepare {name}" + (f" --data_dir {data_dir}" if data_dir else "")


# --------------------------------------------------------------------------------------------------
# Sources: files or a prepared set
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of problems: the files of a split, or one split of a prepared set."""

    title: str  # for messages
    split: str | None  # of a set or a directory; None where there are none
    files: tuple[Path, ...] = ()  # empty for a prepared set
    directory: Path | None = None  # of a prepared set


def find_source(where: str, given: Any, role: str, data_dir: str | None) -> Source:
    """Resolve the name of a source.

    Args:
      where: Dotted path of the setting, for errors.
      given: A file, a directory, a pattern, a list of these, or the name of a prepared set.
      role: "train", "validation" or "test": the split of a source with several, such as gsm8k. A
        source with one split returns that one.
      data_dir: Directory of prepared sets; None for the default of TFDS.

    Raises:
      ValueError: If the name is neither that of files nor of a prepared set, or both.
    """
    (source,) = _find(where, given, role, data_dir)
    return source


def find_sources(where: str, given: str, data_dir: str | None) -> list[Source]:
    """Resolve the name of a source, for all of its splits; see `find_source`."""
    return _find(where, given, None, data_dir)


def _find(where: str, given: Any, role: str | None, data_dir: str | None) -> list[Source]:
    metadata = read_metadata(given, data_dir) if _can_be_a_name(given) else None
    is_set = metadata is not None or _is_published(given)
    # Of a set and a directory of the same name, the name is that of the set.
    found = {} if is_set and Path(given).is_dir() else find_data_files(where, given, role)
    if found:
        if is_set:
            raise ValueError(
                f"{where}: must name a file or a set, got {given!r}, which is both; "
                f"'./{given}' is the file"
            )
        title = given if isinstance(given, str) else f"{given[0]} and {len(given) - 1} more"
        return [
            Source(f"{title} ({split})" if split else title, split or None, files)
            for split, files in found.items()
        ]
    if metadata is None and is_set:
        raise ValueError(
            f"{where}: must be a prepared set, got {given!r}, which is not in "
            f"{data_root(data_dir)}; `{prepare_command(given, data_dir)}` prepares it"
        )
    if metadata is None:
        names = list(dict.fromkeys([*PUBLISHED, *prepared_names(data_dir)]))
        near = difflib.get_close_matches(str(given), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{where}: must be a data file (JSONL, parquet or Arrow), a directory or a pattern of "
            f"them, or one of the sets {', '.join(names)}, got {shown(given)}{hint}"
        )
    directory = set_directory(given, data_dir)
    if role is None:
        return [Source(f"{given} ({split})", split, (), directory) for split in metadata["splits"]]
    splits = PUBLISHED[given].splits if given in PUBLISHED else (USER_SPLIT,)
    role = "test" if role == "validation" else role
    split = role if role in splits else splits[0]
    if split not in metadata["splits"]:
        raise ValueError(
            f"{where}: must be a set with the split {split!r}, got {given!r}, which was prepared "
            f"without it; `{prepare_command(given, data_dir)} --overwrite true` prepares it"
        )
    return [Source(f"{given} ({split})", split, (), directory)]


def _can_be_a_name(given: Any) -> bool:
    return (
        isinstance(given, str)
        and given not in ("", ".", "..")
        and not any(sign in given for sign in "/\\\0")
    )


def _is_published(given: Any) -> bool:
    return isinstance(given, str) and given in PUBLISHED


def read_source(
    source: Source,
    problem_field: str | None = None,
    answer_field: str | None = None,
    skip_invalid: bool = False,
) -> Examples:
    """Read problems and answers in the order of the source; the options apply to files only.

    Raises:
      ValueError: If a row is invalid, as `FILE:LINE: ...`; see `read_examples`.
    """
    if source.files:
        return read_examples(source.files, problem_field, answer_field, skip_invalid)
    rows = read_prepared(source.directory, source.split)
    examples = [Example(i, row["problem"], row["answer"]) for i, row in enumerate(rows)]
    return Examples(examples, len(examples))


def read_prepared(directory: Path, split: str) -> list[dict[str, Any]]:
    """Read the rows of one split of a prepared set, by id: the order of the source file.

    Raises:
      ValueError: If the set is damaged.
    """
    import tensorflow_datasets as tfds  # slow to import

    try:
        rows = list(tfds.builder_from_directory(directory).as_data_source(split))
    except Exception as error:  # TFDS, array_record and the system raise errors of their own
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise ValueError(
            f"{directory}: must be a readable prepared set, got an error ({reason:.80}); prepare "
            "it again with --overwrite true"
        ) from error
    # TFDS may write in another order; texts are read as bytes.
    return sorted(
        (
            {name: v.decode() if isinstance(v, bytes) else v for name, v in row.items()}
            for row in rows
        ),
        key=lambda row: row["id"],
    )
