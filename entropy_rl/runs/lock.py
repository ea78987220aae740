"""Lock files: a directory has one writing process at a time.

The lock is that of `flock`, which the kernel releases when a process ends, however it ends. The
file names the process for the error of a second one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
# From file systems without locks, such as Lustre mounted without `flock`.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def one_writer(file: Path, where: str) -> Iterator[None]:
    """Hold a lock file, which is deleted at the end; one left by a killed process does not block.

    On a file system without locks, a warning says so and nothing is checked.

    Args:
      file: The lock file; its directory must exist.
      where: What it protects, for the error: a config field and a path.

    Raises:
      ValueError: If another process holds the lock; names the process and its host.
    """
    held = _acquire(file, where)
    try:
        yield
    finally:
        # While the lock is held: afterwards the file might be that of another process.
        file.unlink(missing_ok=True)
        held.close()


def check_unlocked(file: Path, where: str) -> None:
    """Check that no process holds a lock file; see `one_writer`."""
    if file.exists():
        with one_writer(file, where):
            pass


def _acquire(file: Path, where: str) -> IO[str]:
    while True:
        held = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(held)
            held.close()
            raise ValueError(
                f"{where}: must have one writer, got a second process; {holder} writes to it"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                held.close()
                raise OSError(error.errno, error.strerror, str(file)) from None
            log.warning(
                "%s: the file system has no locks: a second process there is not noticed",
                file.parent,
            )
        if _is_same_file(held, file):
            _name_this_process(held, file)
            return held
        held.close()  # the process before deleted it between `open` and `flock`


def _name_this_process(held: IO[str], file: Path) -> None:
    try:
        held.truncate(0)
        held.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        held.flush()
    except OSError as error:  # of a file descriptor, so without a name: the disk is full
        with contextlib.suppress(OSError):
            held.close()
        raise OSError(error.errno, error.strerror, str(file)) from None


def _holder(held: IO[str]) -> str:
    try:
        held.seek(0)
        holder = json.loads(held.read())
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # it has just taken the lock
        return "another process"


def _is_same_file(held: IO[str], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held.fileno()), file.stat())
    except FileNotFoundError:
        return False
