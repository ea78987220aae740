"""Files that a user names: regular files only, and one line for whatever a library raises."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import at_place, require

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expand_home(config: Any, *names: str) -> None:
    """Expand `~` and `~USER` at the beginning of paths, which a shell leaves in `--output=~/x`.

    As in a shell, a user that does not exist is kept as it is written.

    Args:
      config: A config dataclass, also a frozen one.
      names: Its fields, each a path, a list of paths, or None.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str | os.PathLike):
            value = os.path.expanduser(value)
        elif value is not None:
            value = [os.path.expanduser(path) for path in value]
        object.__setattr__(config, name, value)


def user_cache() -> Path:
    """Return `entropy_rl` in the user's cache directory: `$XDG_CACHE_HOME`, else `~/.cache`.

    Raises:
      ValueError: If that is no absolute path, as for a user without a home directory.
    """
    base = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    require(os.path.isabs(base), "XDG_CACHE_HOME", base, "an absolute path")
    return Path(base) / "entropy_rl"


def require_file(file: Path) -> None:
    """Refuse what is no regular file: a FIFO would block, a device may never end.

    Raises:
      FileNotFoundError: If it does not exist.
      ValueError: If it is something else, or its name cannot be that of a file.
    """
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file}: not found") from None
    except ValueError as error:  # an embedded null byte
        raise ValueError(f"{str(file)!r}: must be a file name, got {error}") from None
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise ValueError(f"{file}: must be a regular file, got {kind}")


def check_creatable(directory: Path, field: str = "output") -> None:
    """Check that a directory can be created, or be written to if it exists. Writes nothing.

    Args:
      directory: The directory.
      field: The config field that names it.

    Raises:
      ValueError: If it is a file, or would be below one.
      OSError: If this user may not write there.
    """
    absolute = directory.absolute()
    last = next(path for path in (absolute, *absolute.parents) if os.path.exists(path))
    if not last.is_dir():
        raise ValueError(
            f"{field}: must be a directory that can be created, got {str(directory)!r}, as {last} "
            "is a file"
        )
    if not os.access(last, os.W_OK | os.X_OK):
        is_mounted_so = os.statvfs(last).f_flag & os.ST_RDONLY
        code = errno.EROFS if is_mounted_so else errno.EACCES
        raise OSError(code, os.strerror(code), str(last))


def check_writable(file: Path, field: str = "output") -> None:
    """Check that a file can be created or replaced. Writes nothing.

    Raises:
      ValueError: If it is a directory, a device or the like; also as `check_creatable` for the
        directory above it.
    """
    if file.exists():
        with at_place(field):
            require_file(file)
    # The file that a link names is replaced.
    check_creatable((file.resolve() if file.is_symlink() else file).parent, field)


def read_text(file: Path) -> str:
    """Read a regular UTF-8 text file; errors are one line."""
    require_file(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: must be UTF-8 text, got {error}") from None


@contextlib.contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Convert what a library raises on user input into a `ValueError` of one line.

    Such as an exception of a template engine, a RecursionError, or the panic of a library in Rust,
    which is no `Exception`.

    Args:
      where: The file, directory or field, with which the line begins.

    Raises:
      ValueError: If the block raises anything but an interruption; an `OSError` with the name of
        a file passes as it is.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(f"{where}: {error_text(error)}") from error


def error_text(error: BaseException, limit: int = 300) -> str:
    """Return the text of an exception in one line, with its type where the text alone is none."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line)
    if isinstance(error, RecursionError):
        text = "nested too deeply"
    elif isinstance(error, KeyError | UnicodeError) or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."
