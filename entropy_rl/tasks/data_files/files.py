"""Data files: which files a path, a directory or a pattern names, and their rows.

A directory is one of data files, as on the Hugging Face hub, or one that `save_to_disk` of
`datasets` wrote.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import shown
from entropy_rl.runs.hub import data_directory, is_hub_id
from entropy_rl.tasks.data_files.formats import column_names, file_count, file_rows

_SUFFIX = re.compile(r"(\.jsonl|\.ndjson|\.parquet|\.arrow)(\.gz|\.zst|\.bz2|\.xz)?$")
_SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})")
# What follows the name of a file's data set: the number of a shard, or of a part.
_NUMBER = re.compile(r"-[0-9]+-of-[0-9]+.*|[-_.]*[0-9]*$")
# The names of splits in file names, and what they are called here.
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test)(?![A-Za-z])")
_CALLED = {"valid": "validation", "val": "validation", "dev": "validation"}
# The splits that serve for a setting, the best first.
_FOR_ROLE = {
    "train": ("train",),
    "validation": ("validation", "test"),
    "test": ("test", "validation"),
}


# --------------------------------------------------------------------------------------------------
# Rows
# --------------------------------------------------------------------------------------------------


def read_rows(
    paths: Path | Sequence[Path], fields: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the rows of a file, or of several one after the other.

    Args:
      paths: The files.
      fields: Columns to read from parquet files; None for all.

    Yields:
      The location, `FILE:LINE` or `FILE: row N` counted from 1, and the row.

    Raises:
      ValueError: If a file has no rows, or a row cannot be read.
    """
    for path in _as_list(paths):
        empty = True
        for item in file_rows(path, fields):
            empty = False
            yield item
        if empty:
            raise ValueError(f"{path}: must have at least one row, got an empty file")


def count_rows(paths: Path | Sequence[Path]) -> int:
    """Count the rows of files; for JSONL their lines."""
    return sum(map(file_count, _as_list(paths)))


def field_names(paths: Path | Sequence[Path]) -> list[str]:
    """Return the field names of the first file; for JSONL those of its first row."""
    path = _as_list(paths)[0]
    columns = column_names(path)
    return list(next(read_rows(path))[1]) if columns is None else columns


def _as_list(paths: Path | Sequence[Path]) -> Sequence[Path]:
    return [paths] if isinstance(paths, Path) else paths


# --------------------------------------------------------------------------------------------------
# Which files
# --------------------------------------------------------------------------------------------------


def find_data_files(where: str, given: Any, role: str | None) -> dict[str, tuple[Path, ...]]:
    """Find the files that a setting names, by split.

    Args:
      where: Dotted path of the setting, for errors.
      given: A file, a directory, a glob pattern, NAMESPACE/NAME@REVISION of the Hub, or a list of
        these.
      role: The use, `train`, `validation` or `test`, which picks one split of a directory with
        several. None for all of them.

    Returns:
      The files of each split in order. Without splits, the only key is "". Empty if there is no
      such file and no such directory.

    Raises:
      ValueError: If a directory or a pattern has no data files, or lacks a split or a shard.
    """
    if isinstance(given, list):
        return {"": _of_list(where, given, role)}
    if not isinstance(given, str) or not given or "\0" in given:
        return {}
    path = Path(os.path.expanduser(given))
    if path.is_file():
        return {"": (path,)}
    if path.is_dir():
        return _pick(where, given, _of_directory(where, given, path), role)
    if glob.has_magic(given):
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        files = sorted(filter(Path.is_file, found), key=_natural)
        if not files:
            raise ValueError(f"{where}: must match at least one file, got {given!r}")
        return {"": tuple(files)}
    if is_hub_id(given) and not _SUFFIX.search(given):  # `data/train.jsonl` is a file
        return _pick(where, given, _of_directory(where, given, data_directory(given, where)), role)
    return {}


def _of_list(where: str, given: list[Any], role: str | None) -> tuple[Path, ...]:
    files: list[Path] = []
    for i, item in enumerate(given):
        at = f"{where}[{i}]"
        parts = {} if isinstance(item, list) else find_data_files(at, item, role or "train")
        if not parts:
            raise ValueError(f"{at}: must be a file, a directory or a pattern, got {shown(item)}")
        files += next(iter(parts.values()))
    if len(set(files)) < len(files):
        repeated = next(path for path, count in Counter(files).items() if count > 1)
        raise ValueError(f"{where}: must name each file once, got {str(repeated)!r} twice")
    if not files:
        raise ValueError(f"{where}: must be a list of at least one file, got []")
    return tuple(files)


def _pick(
    where: str, given: str, splits: dict[str, tuple[Path, ...]], role: str | None
) -> dict[str, tuple[Path, ...]]:
    if role is not None and len(splits) > 1:
        split = next((split for split in _FOR_ROLE[role] if split in splits), None)
        if split is None:
            wanted = " or ".join(map(repr, _FOR_ROLE[role]))
            raise ValueError(
                f"{where}: must be a directory with the split {wanted}, got {given!r} with "
                f"{', '.join(map(repr, splits))}; name its files"
            )
        splits = {split: splits[split]}
    _require_one_set(where, given, splits)
    return splits


def _of_directory(where: str, given: str, path: Path) -> dict[str, tuple[Path, ...]]:
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json", "splits")
        return {str(name): _saved(path / str(name)) for name in names}
    if (path / "state.json").is_file():
        return {"": _saved(path)}
    files = _data_files(path) or _data_files(path / "data")
    if not files:
        raise ValueError(
            f"{where}: must be a directory with files .jsonl, .parquet or .arrow, or one of "
            f"save_to_disk, got {given!r}, which has none"
        )
    kinds = sorted({match[1] for file in files if (match := _SUFFIX.search(file.name))})
    if len(kinds) > 1:
        raise ValueError(
            f"{where}: must be a directory with files of one format, got {given!r} with "
            f"{' and '.join(kinds)}; name the files by a pattern such as '*{kinds[0]}'"
        )
    _require_shards(where, files)
    found: dict[str, list[Path]] = {}
    for file in files:
        match = _SPLIT.match(file.name)
        split = _CALLED.get(match[1], match[1]) if match else ""
        found.setdefault(split, []).append(file)
    splits = {split: tuple(of_split) for split, of_split in found.items()}
    if "" in splits and len(splits) > 1:
        raise ValueError(
            f"{where}: must be a directory whose files all begin with their split, or none, got "
            f"{given!r} with {splits[''][0].name!r}; name the files"
        )
    return splits


def _require_one_set(where: str, given: str, splits: dict[str, tuple[Path, ...]]) -> None:
    """Refuse a split of several data sets, such as train_sft and train_prefs."""
    for split, files in splits.items():
        stems = list(dict.fromkeys(_NUMBER.sub("", _SUFFIX.sub("", file.name)) for file in files))
        if split and len(stems) > 1:
            pattern = files[0].parent / f"{stems[0]}{files[0].name[len(stems[0])]}*"
            raise ValueError(
                f"{where}: must be a directory with one data set for each split, got {given!r} "
                f"with {' and '.join(map(repr, stems))}; name the files by a pattern such as "
                f"'{pattern}'"
            )


def _data_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    visible = (file for file in path.iterdir() if not file.name.startswith((".", "_")))
    return sorted((f for f in visible if f.is_file() and _SUFFIX.search(f.name)), key=_natural)


def _require_shards(where: str, files: Sequence[Path]) -> None:
    """Refuse a directory from which a shard is missing."""
    found: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.match(file.name):
            found.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (name, count), numbers in found.items():
        if missing := sorted(set(range(count)) - numbers):
            raise ValueError(
                f"{where}: must have all {count} shards of {name!r}, got none with the number "
                f"{missing[0]:05}"
            )


def _saved(path: Path) -> tuple[Path, ...]:
    """Return the files of a directory that `Dataset.save_to_disk` wrote."""
    state = path / "state.json"
    if not state.is_file():
        raise ValueError(f"{path}: must be a directory of save_to_disk, got one without state.json")
    entries = _json(state, "_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{state}: must name the data files, got {entries!r:.80}")
    for name in names:
        if not (path / name).is_file():
            raise ValueError(f"{path}: must have the file {name!r} of its state.json, got none")
    return tuple(path / name for name in names)


def _json(file: Path, field: str) -> list[Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[field]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: must be JSON with {field!r}, got {error!r:.80}") from error
    if not isinstance(found, list):
        raise ValueError(f"{file}: must have a list as {field!r}, got {found!r:.80}")
    return found


def _natural(path: Path) -> list[Any]:
    """Return a key by which part-2 comes before part-10."""
    parts = re.split(r"([0-9]+)", str(path))
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
