"""Preparing a set: finding or fetching its files, and building it whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from entropy_rl.config.registry import unknown
from entropy_rl.tasks.math import sets

Progress = Callable[[str, int], None]


def prepare(
    name: str,
    source: str | None = None,
    *,
    data_dir: str | None = None,
    problem_field: str | None = None,
    answer_field: str | None = None,
    overwrite: bool = False,
    watch: Callable[[Mapping[str, Path]], Progress] = lambda sources: lambda split, rows: None,
) -> bool:
    """Makes a set ready for use.

    Args:
      name: A published set, or any other name for a set of the user's own.
      source: Its file; for a published set also the directory of its files, or None to fetch them.
      data_dir: Where prepared sets lie; None for TFDS' own place.
      problem_field: Field of the problem's text in a file of the user's own; None for `problem`.
      answer_field: Field of the answer, likewise; None for `answer`.
      overwrite: Replace what is prepared.
      watch: From the file of each split to what is called with a split and the rows read of its
        file.

    Returns:
      True if it was prepared; False if it already was, from the same source.

    Raises:
      ValueError: If there is no such set, or it is prepared from another source, or a row is wrong.
      OSError: If it cannot be written.
    """
    published = sets.PUBLISHED.get(name)
    fields = _check_arguments(name, problem_field, answer_field)
    directory = sets.set_directory(name, data_dir)
    known = None if overwrite else sets.read_metadata(name, data_dir)
    if source is None and known is not None:
        return False
    if source is None and published is None:
        raise ValueError(
            unknown("name", name, sets.PUBLISHED) + ", or a name of your own with --source FILE"
        )
    sources = fetch(published) if source is None else find_files(published, source)
    sums = {split: _sha256(path) for split, path in sources.items()}
    if known is not None:
        if known["sha256"] == sums and known["fields"] == fields:
            return False
        raise ValueError(
            f"{name}: it is prepared from {' and '.join(known['sources'].values())}, which is not "
            "the same; "
            "allowed: --overwrite true to replace it"
        )
    if directory.exists() and not overwrite:
        raise ValueError(
            f"{directory}: not a prepared set; allowed: --overwrite true to replace what is there"
        )
    facts = {
        "title": published.title if published else name,
        "repository": published.repository if published else None,
        # Of a file that somebody else brought, the sum tells whether it is the one of this
        # revision.
        "revision": published.revision if published else None,
        "license": published.license if published else None,
        "sources": {split: str(path.absolute()) for split, path in sources.items()},
        "sha256": sums,
        "fields": fields,
    }
    _build(
        name, directory, {"sources": sources, "facts": facts, "progress": watch(sources)}, fields
    )
    return True


def _check_arguments(
    name: str, problem_field: str | None, answer_field: str | None
) -> list[str] | None:
    """The fields of a file of the user's own; None for a published set."""
    if name in sets.PUBLISHED:
        for option, value in (("problem_field", problem_field), ("answer_field", answer_field)):
            if value is not None:
                raise ValueError(
                    f"{option}: {value!r} is not allowed; {name} has fields of its own"
                )
        return None
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name in (
        "train",
        "validation",
        "test",
    ):
        raise ValueError(
            f"name: {name!r} is not allowed; allowed: {', '.join(sets.PUBLISHED)}, or a name of "
            "letters, "
            "digits, dots and _ -, other than train, validation, test"
        )
    return [problem_field or "problem", answer_field or "answer"]


def _build(
    name: str, directory: Path, arguments: Mapping[str, Any], fields: list[str] | None
) -> None:
    import tensorflow_datasets as tfds  # slow to import

    from entropy_rl.tasks.math.builders import BUILDERS, UserMath

    root = directory.parents[1 if name in BUILDERS else 2]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"data_dir: {str(root)!r} cannot be made: {error.strerror}") from error
    # Made aside and moved when it is whole: TFDS would delete the old set before it reads the new
    # file.
    with tempfile.TemporaryDirectory(prefix=f"incomplete.{name}.", dir=root) as aside:
        if name in BUILDERS:
            builder = BUILDERS[name](data_dir=aside, **arguments)
        else:
            config = tfds.core.BuilderConfig(name=name)
            builder = UserMath(fields=fields, config=config, data_dir=aside, **arguments)
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(
                io.StringIO()
            ):  # TFDS tells of a download, and there is none
                builder.download_and_prepare()
        except RuntimeError as error:  # of array_record, such as on a full disk
            raise OSError(
                f"{directory}: cannot be written: {str(error).partition('; writing ')[0]}"
            ) from error
        directory.parent.mkdir(parents=True, exist_ok=True)
        replaced = Path(aside, "replaced")
        if directory.exists():
            directory.rename(replaced)
        try:
            Path(builder.data_dir).rename(directory)
        except OSError:
            if replaced.exists():
                replaced.rename(directory)  # or the old set would go with what is aside
            raise


# --------------------------------------------------------------------------------------------------
# The files that a set is prepared from
# --------------------------------------------------------------------------------------------------


def find_files(published: sets.MathSet | None, source: str) -> dict[str, Path]:
    """The file of each split.

    Args:
      published: The set; None for one of the user's own.
      source: Its file; of a published set also a directory with its files under their published
        names. Of a set with two files one is enough, if its name begins with that of its split.

    Raises:
      ValueError: If there is no such file.
    """
    path = Path(source)
    if published is not None and path.is_dir():
        places = {
            file.split: (path / file.path, path / Path(file.path).name) for file in published.files
        }
        found = {split: next(filter(Path.is_file, both), None) for split, both in places.items()}
        if None in found.values():
            names = " and ".join(file.path for file in published.files)
            raise ValueError(
                f"source: the directory {source!r} lacks a file; allowed: one with {names}"
            )
        return found
    if not path.is_file():
        raise ValueError(f"source: {source!r} is not a file; allowed: a JSONL or parquet file")
    splits = (sets.USER_SPLIT,) if published is None else published.splits
    if len(splits) > 1:
        splits = tuple(split for split in splits if path.name.startswith(split))
    if not splits:
        raise ValueError(
            f"source: {source!r} may be any split of {published.name}; allowed: a file whose name "
            "begins "
            f"with {' or '.join(published.splits)}, or the directory with both files"
        )
    return {splits[0]: path}


def fetch(published: sets.MathSet) -> dict[str, Path]:
    """Downloads the files of a published set into the cache of huggingface_hub, if they are not
    there.

    Raises:
      ValueError: If that does not work, with the way to do without.
    """
    return {file.split: _fetch_file(published, file) for file in published.files}


def _fetch_file(published: sets.MathSet, file: sets.SourceFile) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    where = {"repo_id": published.repository, "filename": file.path, "repo_type": "dataset"}
    where |= {"revision": published.revision}
    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(huggingface_hub.hf_hub_download(**where, local_files_only=True))
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    try:
        _ask_hub(huggingface_hub.hf_hub_url(**where))
        return Path(huggingface_hub.hf_hub_download(**where))
    except Exception as error:  # of the network, the hub or the disk: the way out is the same
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        if isinstance(error, OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE is set"
        addresses = " and ".join(published.address(each) for each in published.files)
        kind = "FILE" if len(published.files) == 1 else "DIRECTORY"
        raise ValueError(
            f"{published.name}: cannot fetch {file.path} of {published.repository} "
            f"({reason:.80}); allowed: "
            f"download {addresses} on another machine, then add --source {kind}"
        ) from error


def _ask_hub(url: str) -> None:
    """Fails soon where there is no way to the hub; the download itself would try for half a
    minute.
    """
    from huggingface_hub import get_hf_file_metadata

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=8)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    # Its timeout counts for each address of the host, of which there may be eight.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(10)
    error = outcome[0] if outcome else TimeoutError("no answer in 10 s")
    if error is not None:
        raise error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
