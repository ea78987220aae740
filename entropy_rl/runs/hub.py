"""Models and data sets of the Hugging Face hub: ids, commits, downloads into the user's cache.

`NAMESPACE/NAME` is the newest commit of the default branch, `NAMESPACE/NAME@REVISION` a branch, a
tag or a commit. A run records the commit, so that it is resumed with the same files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import shown
from entropy_rl.config.values import field_at
from entropy_rl.runs.stored import CONFIG_FILE, read_recorded_config

log = logging.getLogger(__name__)

# What a `model.path` must be.
MODEL_PATH = (
    "a Hugging Face directory, asset:NAME, the directory of a run or NAMESPACE/NAME of the Hugging "
    "Face hub"
)
# And what a file of data.
DATA_PATH = "a file, a directory, a set or NAMESPACE/NAME@REVISION of the Hugging Face hub"
_PART = "[A-Za-z0-9_][A-Za-z0-9_.-]*"
HUB_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./-]*))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_DEADLINE_S = 10  # for the first answer of the hub
_WEIGHTS = ("*.safetensors",)
_TEXTS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
_ROWS = ("*.jsonl*", "*.ndjson*", "*.parquet", "*.arrow")
# The config fields that name a model or an adapter.
MODEL_FIELDS = ("model.path", "model.lora.path", "critic.path", "teacher.path")


def is_hub_id(path: str) -> bool:
    """Whether a path is a Hub id.

    Files win: a path that exists is none, nor is one without a revision whose first part is a
    directory here, such as a mistyped `runs/mine`.
    """
    match = HUB_ID.fullmatch(path)
    if match is None or os.path.exists(path):
        return False
    return match["revision"] is not None or not os.path.exists(path.split("/")[0])


def split_id(path: str) -> tuple[str, str | None]:
    """Return (name, revision or None) of a Hub id; (path, None) of another path."""
    match = HUB_ID.fullmatch(path) if is_hub_id(path) else None
    return (match["repo"], match["revision"]) if match else (path, None)


def is_pinned(path: str) -> bool:
    """Whether a path is a Hub id with a commit, as a run records it, whatever exists here now."""
    match = HUB_ID.fullmatch(path)
    return match is not None and _COMMIT.fullmatch(match["revision"] or "") is not None


def pin_models(config: Any, directory: Path, ask: bool = True) -> Any:
    """Name the commit of the models of a config that are on the hub.

    Every process must call it.

    Args:
      config: Has the section `model`, and perhaps `critic` and `teacher`.
      directory: Of the run or evaluation; one that exists keeps the commits that it recorded for
        ids without a revision.
      ask: Whether to ask the hub for other commits; ids without a recorded commit stay otherwise.

    Returns:
      The config, with `NAMESPACE/NAME@COMMIT` for each id.

    Raises:
      ValueError: As `resolve`.
    """
    from entropy_rl.distributed import multihost as hosts  # imports jax

    for field in MODEL_FIELDS:
        path = field_at(config, field)
        if path is not None and is_hub_id(path):
            pinned = functools.partial(_pinned, path, field, directory, ask)
            # One process reads what is recorded.
            config = _replaced(
                config, field.split("."), hosts.on_first(pinned) if ask else pinned()
            )
    return config


def _pinned(path: str, field: str, directory: Path, ask: bool) -> str:
    """Return an id with its commit, which is recorded in a directory or asked for."""
    recorded = read_recorded_config(directory / CONFIG_FILE)
    known = functools.reduce(lambda part, name: (part or {}).get(name), field.split("."), recorded)
    if isinstance(known, str) and known.startswith(f"{path}@"):
        return known
    return resolve(path, field) if ask else path


def _replaced(section: Any, field: Sequence[str], value: Any) -> Any:
    """Return a copy of a section with another value of a field of it or of its sections."""
    name, *below = field
    value = _replaced(getattr(section, name), below, value) if below else value
    return dataclasses.replace(section, **{name: value})


def resolve(path: str, where: str = "model.path") -> str:
    """Return an id with the commit that its revision names now.

    Where the hub cannot be reached, the commit in the cache counts, and a warning says so.

    Args:
      path: `NAMESPACE/NAME` or `NAMESPACE/NAME@REVISION`.
      where: The config field, for errors.

    Raises:
      ValueError: If the hub has no such model, or cannot be reached and nothing is cached.
    """
    if is_pinned(path):
        return path
    # The download of the small files records the revision in the cache, for later without network.
    return f"{split_id(path)[0]}@{_download(path, _TEXTS, where).name}"


def data_directory(path: str, where: str) -> Path:
    """The directory of a Hub data set in the cache; downloads what is missing.

    Args:
      path: `NAMESPACE/NAME@REVISION`.
      where: The config field, for errors.

    Raises:
      ValueError: If there is no revision, so that the data could be others when a run is resumed,
        or the hub has no such data set, or cannot be reached and nothing is cached.
    """
    found = _download(path, _ROWS, where, "dataset")
    if split_id(path)[1] is None:
        raise ValueError(
            f"{where}: must be NAMESPACE/NAME@REVISION, got {shown(path)}; the newest commit is "
            f"{path}@{found.name}"
        )
    return found


def hub_directory(path: str, weights: bool = True, where: str = "model.path") -> Path:
    """The directory of a Hub model or adapter in the cache; downloads what is missing.

    Args:
      path: `NAMESPACE/NAME` or `NAMESPACE/NAME@REVISION`.
      weights: Whether the weights are needed, beside config and tokenizer.
      where: The config field, for errors.

    Raises:
      ValueError: As `resolve`.
    """
    return _download(path, (*_TEXTS, *_WEIGHTS) if weights else _TEXTS, where)


def _download(path: str, patterns: tuple[str, ...], where: str, kind: str = "model") -> Path:
    import huggingface_hub as hub
    from huggingface_hub import errors, utils  # the package has no attribute of these names yet

    repository, revision = split_id(path)
    revision = revision or "main"
    # Exports of models to other formats are in subdirectories; data are in data/ or beside it.
    ignored = ["*/*"] if kind == "model" else ["*/*/*"]
    wanted = dict(
        revision=revision, repo_type=kind, allow_patterns=list(patterns), ignore_patterns=ignored
    )
    if _COMMIT.fullmatch(revision):  # it cannot change: the cache is as good
        with contextlib.suppress(errors.LocalEntryNotFoundError):
            return Path(hub.snapshot_download(repository, **wanted, local_files_only=True))
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        within_deadline(
            lambda: hub.HfApi().repo_info(repository, repo_type=kind, revision=revision)
        )
        return Path(hub.snapshot_download(repository, **wanted))
    except Exception as error:  # network, hub or disk
        reason = hub_reason(error)
        known = errors.RepositoryNotFoundError | errors.RevisionNotFoundError
        if not isinstance(error, known):
            with contextlib.suppress(errors.LocalEntryNotFoundError):
                found = hub.snapshot_download(repository, **wanted, local_files_only=True)
                commit = Path(found).name
                log.warning("%s: %s: %s; using the cached commit %s", where, path, reason, commit)
                return Path(found)
        command = f"hf download {repository}" + (" --repo-type dataset" if kind != "model" else "")
        command += "" if revision == "main" else f" --revision {revision}"
        must_be = MODEL_PATH if kind == "model" else DATA_PATH
        raise ValueError(
            f"{where}: must be {must_be}, got {shown(path)} ({reason}); `{command}` caches a "
            f"{kind} of the Hub"
        ) from error


def upload(directory: Path, repository: str) -> None:
    """Upload the files of a directory as one commit; a new repository is private.

    Raises:
      ValueError: If the hub refuses it or cannot be reached.
    """
    import huggingface_hub as hub

    api = hub.HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=directory)
    except Exception as error:  # network or hub
        raise ValueError(
            f"push: must be a repository that can be written, got {shown(repository)} "
            f"({hub_reason(error)}); {directory} is complete: `hf upload {repository} {directory}`"
        ) from error


def hub_reason(error: Exception) -> str:
    """A short text for an error of huggingface_hub."""
    from huggingface_hub import errors

    known = {
        errors.GatedRepoError: "gated: accept its terms on the hub, then `hf auth login`",
        errors.RepositoryNotFoundError: "not found; a private one needs `hf auth login`",
        errors.RevisionNotFoundError: "it has no such revision",
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set",
    }
    for kind, text in known.items():
        if isinstance(error, kind):
            return text
    return f"{(str(error).strip() or type(error).__name__).partition(chr(10))[0]:.80}"


def within_deadline(ask: Callable[[], Any]) -> Any:
    """Ask the hub for something small; fail within 10 s, where a download would retry for 30 s.

    Raises:
      TimeoutError: If there is no answer in time; also what `ask` raises.
    """
    outcome: list[tuple[Any, Exception | None]] = []

    def run() -> None:
        try:
            outcome.append((ask(), None))
        except Exception as error:
            outcome.append((None, error))

    # A timeout of the request applies to each address of the host, and a host may have several.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_DEADLINE_S)
    if not outcome:
        raise TimeoutError(f"no answer in {_DEADLINE_S} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
