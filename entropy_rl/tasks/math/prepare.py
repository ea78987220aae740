"""Prepare a data set: find or download its files and build it atomically."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import at_place
from entropy_rl.config.values import unknown
from entropy_rl.runs.hub import hub_reason, within_deadline
from entropy_rl.runs.lock import LOCK_FILE, one_writer
from entropy_rl.tasks.data_files.fields import find_fields
from entropy_rl.tasks.data_files.files import find_data_files, read_rows
from entropy_rl.tasks.math import catalog, sets

Progress = Callable[[str, int], None]
Sources = Mapping[str, Sequence[Path]]  # the files of each split


def prepare(
    name: str,
    source: str | None = None,
    *,
    data_dir: str | None = None,
    problem_field: str | None = None,
    answer_field: str | None = None,
    overwrite: bool = False,
    watch: Callable[[Sources], Progress] = lambda sources: lambda split, rows: None,
) -> bool:
    """Build a prepared set.

    Args:
      name: A published set, or any other name for a user's set.
      source: Its file, or a directory or pattern of them; for a published set its file or the
        directory of its files, or None to download them.
      data_dir: Directory of prepared sets; None for the default of TFDS.
      problem_field: Field of the problem in a user's file; None to look for it by name.
      answer_field: Field of the answer in a user's file; None to look for it by name.
      overwrite: Replace an existing set.
      watch: Maps the files of each split to a progress callback, which is called with a split and
        the number of rows read.

    Returns:
      True if it was built; False if it already existed, from the same source.

    Raises:
      ValueError: If there is no such set, it exists from another source, a row is invalid, or
        another process prepares it.
      OSError: If it cannot be written.
    """
    published = catalog.PUBLISHED.get(name)
    _check_arguments(name, problem_field, answer_field)
    directory = sets.set_directory(name, data_dir)
    known = None if overwrite else sets.read_metadata(name, data_dir)
    if source is None and known is not None:
        return False
    if source is None and published is None:
        raise ValueError(
            unknown("name", name, [*catalog.PUBLISHED, "any other name with --source FILE"])
        )
    sources = fetch(published) if source is None else find_files(published, source)
    fields = None if published else _find_fields(sources, problem_field, answer_field)
    sums = {split: _sha256_of(paths) for split, paths in sources.items()}
    is_built = functools.partial(_is_built, name, directory, data_dir, sums, fields)
    if not overwrite and is_built():
        return False
    given = Path(os.path.expanduser(source or ""))  # a fetched set has one file for each split
    facts = {
        "title": published.title if published else name,
        "repository": published.repository if published else None,
        # For a file given by the user, the checksum tells whether it is of this revision.
        "revision": published.revision if published else None,
        "license": published.license if published else None,
        "sources": {
            split: str((paths[0] if len(paths) == 1 else given).absolute())
            for split, paths in sources.items()
        },
        "sha256": sums,
        "fields": fields,
    }
    root = sets.data_root(data_dir)
    _make_directory(root)
    with one_writer(root / f"{name}.{LOCK_FILE}", str(directory)):
        if not overwrite and is_built():  # by another process, meanwhile
            return False
        _build(
            name,
            directory,
            {"sources": sources, "facts": facts, "progress": watch(sources)},
            fields,
        )
    return True


def _is_built(
    name: str,
    directory: Path,
    data_dir: str | None,
    sums: Mapping[str, str],
    fields: list[str] | None,
) -> bool:
    """True if the set exists, from the same source.

    Raises:
      ValueError: It exists from another source, or its directory has other content.
    """
    known = sets.read_metadata(name, data_dir)
    if known is not None:
        if known["sha256"] == sums and known["fields"] == fields:
            return True
        raise ValueError(
            f"{name}: must have the source that it was prepared from, "
            f"{' and '.join(known['sources'].values())}, got another one; "
            "--overwrite true replaces it"
        )
    if directory.exists():
        raise ValueError(
            f"{directory}: must be a prepared set or not exist, got a directory with other "
            "content; --overwrite true replaces it"
        )
    return False


def _check_arguments(name: str, problem_field: str | None, answer_field: str | None) -> None:
    if name in catalog.PUBLISHED:
        for option, value in (("problem_field", problem_field), ("answer_field", answer_field)):
            if value is not None:
                raise ValueError(
                    f"{option}: must be null for {name}, which defines its fields, got {value!r}"
                )
        return
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name in (
        "train",
        "validation",
        "test",
    ):
        raise ValueError(
            f"name: must be one of {', '.join(catalog.PUBLISHED)}, or consist of letters, digits "
            f"and . _ - and not be train, validation or test, got {name!r}"
        )


def _find_fields(
    sources: Sources, problem_field: str | None, answer_field: str | None
) -> list[str]:
    """The fields of a user's files, by the first row."""
    where, row = next(read_rows(sources[sets.USER_SPLIT]))
    with at_place(where):
        found = find_fields(row, problem_field, answer_field)
    return [found.problem, found.answer]


def _build(
    name: str, directory: Path, arguments: Mapping[str, Any], fields: list[str] | None
) -> None:
    import tensorflow_datasets as tfds  # slow to import

    from entropy_rl.tasks.math.builders import BUILDERS, UserMath

    root = directory.parents[1 if name in BUILDERS else 2]
    # Built in a temporary directory and renamed when it is complete: TFDS would delete the old set
    # before it reads the new file.
    with _aside(root / f"incomplete.{name}", directory) as (aside, replaced):
        if name in BUILDERS:
            builder = BUILDERS[name](data_dir=aside, **arguments)
        else:
            config = tfds.core.BuilderConfig(name=name)
            builder = UserMath(names=fields, config=config, data_dir=aside, **arguments)
        tfds.disable_progress_bar()
        try:
            # TFDS announces a download although there is none.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
        except RuntimeError as error:  # raised by array_record, for example on a full disk
            raise OSError(
                f"{directory}: cannot be written: {str(error).partition('; writing ')[0]}"
            ) from error
        directory.parent.mkdir(parents=True, exist_ok=True)
        if directory.exists():
            directory.rename(replaced)
        Path(builder.data_dir).rename(directory)


@contextlib.contextmanager
def _aside(path: Path, directory: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a temporary directory and the path in it that the old set gets while it is replaced.

    Before and after, an old set without a new one is put back, and the rest is deleted, also that
    of a killed process: the lock of the set is held.
    """
    replaced = path / "replaced"

    def clear() -> None:
        if replaced.exists() and not directory.exists():
            replaced.rename(directory)
        shutil.rmtree(path, ignore_errors=True)

    clear()
    try:
        path.mkdir()
        yield path, replaced
    finally:
        clear()


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"data_dir: must be a directory that can be created, got {str(path)!r} "
            f"({error.strerror})"
        ) from error


# --------------------------------------------------------------------------------------------------
# Source files
# --------------------------------------------------------------------------------------------------


def find_files(published: catalog.MathSet | None, source: str) -> dict[str, tuple[Path, ...]]:
    """Find the files of each split.

    Args:
      published: The set; None for a user's set.
      source: Its file. For a user's set also a directory or a pattern; of a directory with several
        splits, the training split. For a published set also a directory with its files under their
        published names; one file of a set with two is enough if its name begins with the name of
        its split.

    Raises:
      ValueError: If there is no such file.
    """
    path = Path(os.path.expanduser(source))
    if published is None:
        found = find_data_files("source", source, "train")
        if not found:
            raise ValueError(
                "source: must be a data file (JSONL, parquet or Arrow), or a directory or a "
                f"pattern of them, got {source!r}"
            )
        return {sets.USER_SPLIT: next(iter(found.values()))}
    if path.is_dir():
        places = {
            file.split: (path / file.path, path / Path(file.path).name) for file in published.files
        }
        found = {split: next(filter(Path.is_file, both), None) for split, both in places.items()}
        if None in found.values():
            names = " and ".join(file.path for file in published.files)
            raise ValueError(
                f"source: must be a directory with {names}, got {source!r}, which lacks a file"
            )
        return {split: (file,) for split, file in found.items()}
    if not path.is_file():
        raise ValueError(f"source: must be a JSONL or parquet file, got {source!r}")
    splits = published.splits
    if len(splits) > 1:
        splits = tuple(split for split in splits if path.name.startswith(split))
    if not splits:
        raise ValueError(
            f"source: must be a file whose name begins with {' or '.join(published.splits)}, or "
            f"the directory with both files of {published.name}, got {source!r}"
        )
    return {splits[0]: (path,)}


def fetch(published: catalog.MathSet) -> dict[str, tuple[Path, ...]]:
    """Download the files of a published set into the cache of huggingface_hub.

    Raises:
      ValueError: If a download fails; the message says how to prepare the set without it.
    """
    return {file.split: (_fetch_file(published, file),) for file in published.files}


def _fetch_file(published: catalog.MathSet, file: catalog.SourceFile) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    where = {"repo_id": published.repository, "filename": file.path, "repo_type": "dataset"}
    where |= {"revision": published.revision}
    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(huggingface_hub.hf_hub_download(**where, local_files_only=True))
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    try:
        url = huggingface_hub.hf_hub_url(**where)
        within_deadline(lambda: huggingface_hub.get_hf_file_metadata(url, timeout=8))
        return Path(huggingface_hub.hf_hub_download(**where))
    except Exception as error:  # network, hub or disk: the remedy is the same
        addresses = " and ".join(published.address(each) for each in published.files)
        kind = "FILE" if len(published.files) == 1 else "DIRECTORY"
        raise ValueError(
            f"{published.name}: cannot download {file.path} of {published.repository} "
            f"({hub_reason(error)}); download {addresses} on another machine, then add "
            f"--source {kind}"
        ) from error


def _sha256_of(paths: Sequence[Path]) -> str:
    """The checksum of a file; of several, that of their checksums."""
    sums = [_sha256(path) for path in paths]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
