"""Paths that may be in a Google Cloud Storage bucket, and checkpoint operations on them.

A bucket stores objects under long names and has no directories. Writing one object is atomic;
renaming several at once is not possible. Orbax therefore marks a checkpoint as complete with a last
object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entropy_rl.config.extras import install_command

PREFIX = "gs://"
COMPLETE_FILE = "commit_success.txt"  # orbax's last object

# A path of this machine, or one of etils with the same methods.
AnyPath = Any


def is_bucket(path: AnyPath) -> bool:
    """Whether a path is in a bucket."""
    return str(path).startswith(PREFIX)


def open_path(path: str, field: str) -> AnyPath:
    """Open a local path, or one in a bucket, which must exist and be readable.

    Args:
      path: A local path or gs:// URL.
      field: The config field, for the error.

    Raises:
      ValueError: If a library is missing, or the bucket cannot be reached.
    """
    if not is_bucket(path):
        return Path(path)
    if not _has_libraries():
        raise ValueError(
            f"{field}: {path}: the libraries of buckets are not installed; "
            f"`{install_command('gcs')}`"
        )
    from etils import epath
    from fsspec.config import conf

    # No listings cache: other writers exist, such as tensorstore in this process.
    conf["gcs"] = conf.get("gcs", {}) | {"use_listings_cache": False}
    found = epath.Path(path)
    try:
        found.exists()
    except Exception as error:  # of several libraries
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{field}: {path} cannot be reached: {reason:.200}") from error
    return found


def _has_libraries() -> bool:
    try:
        import gcsfs  # noqa: F401
        from google.cloud import storage, storage_control_v2  # noqa: F401  # orbax deletes with it
    except ImportError:
        return False
    return True


def file_sizes(directory: AnyPath) -> dict[str, int]:
    """Return the bytes of every file below a directory, by relative path."""
    from fsspec.core import url_to_fs

    files, root = url_to_fs(str(directory))
    found = files.find(root, detail=True)
    return {name.removeprefix(root).lstrip("/"): found[name]["size"] for name in sorted(found)}


def is_complete(checkpoint: AnyPath) -> bool:
    """Whether a checkpoint under its final name is complete."""
    return not is_bucket(checkpoint) or (checkpoint / COMPLETE_FILE).exists()


def set_aside(checkpoint: AnyPath, name: str) -> None:
    """Rename a checkpoint within its directory.

    In a bucket the objects are copied, and the checkpoint is marked incomplete before any of it is
    deleted: an interruption leaves a damaged checkpoint under the old name, or none.
    """
    target = checkpoint.with_name(name)
    if not is_bucket(checkpoint):
        checkpoint.rename(target)
        return
    for file in file_sizes(checkpoint):
        (checkpoint / file).copy(target / file, overwrite=True)
    (checkpoint / COMPLETE_FILE).unlink()
    checkpoint.rmtree()
