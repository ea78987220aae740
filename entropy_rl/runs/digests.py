"""Digests of files: written with a checkpoint and verified before it is used."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from typing import IO, Any

import numpy as np

from entropy_rl.runs.gcs import AnyPath, file_sizes, is_bucket
from entropy_rl.runs.jsonl import write_atomically

# In the directory of a checkpoint: the state, the size of each file of it, and the digests.
STATE = "state"
SIZES_FILE = "sizes.json"
DIGESTS_FILE = "digests.json"
_BLOCK_BYTES = 2**18  # within the cache of a core


def record_digests(checkpoint: AnyPath, step: int) -> None:
    """Write sizes.json and digests.json of a checkpoint.

    A bucket verifies checksums of its objects itself; there, only sizes and the step are recorded.

    Args:
      checkpoint: Its directory.
      step: The step of the state in it.
    """
    sizes = _sizes(checkpoint)
    digests = {} if is_bucket(checkpoint) else _digests_of(checkpoint, sizes)
    content = json.dumps({"step": step, "blocks": digests})
    write_atomically(checkpoint / DIGESTS_FILE, content)
    write_atomically(checkpoint / SIZES_FILE, json.dumps(sizes | {DIGESTS_FILE: len(content)}))


def describe_damage(checkpoint: AnyPath, contents: bool = True) -> str | None:
    """Describe the damage of a checkpoint; None if there is none.

    What an earlier version did not record is not checked.

    Args:
      checkpoint: Its directory, named by its step.
      contents: Read and hash the files, rather than compare their sizes alone.
    """
    sizes, digests = {}, {"blocks": {}}
    for name in (SIZES_FILE, DIGESTS_FILE):
        path = checkpoint / name
        if not path.exists():
            continue
        try:
            found = json.loads(path.read_bytes().decode())
        except (ValueError, RecursionError):
            return f"{name} is not JSON"
        if not isinstance(found, dict):
            return f"{name} is not a JSON object"
        if name == SIZES_FILE:
            sizes = found
        elif not isinstance(found.get("blocks"), dict):
            return f"{name} has no digests"
        elif found.get("step") != int(checkpoint.name):
            return f"{name} is of step {found.get('step')}"
        else:
            digests = found
    found = _sizes(checkpoint)
    if (checkpoint / DIGESTS_FILE).exists():
        found[DIGESTS_FILE] = len((checkpoint / DIGESTS_FILE).read_bytes())
    for name in sizes:
        if found.get(name) != sizes[name]:
            return f"{name} has {found.get(name, 0)} bytes instead of {sizes[name]}"
    missing = digests["blocks"].keys() - found.keys()
    if missing:
        return f"{min(missing)} is missing"
    if contents:
        now = _digests_of(checkpoint, digests["blocks"])
        for name, digest in digests["blocks"].items():
            if now[name] != digest:
                return f"the content of {name} has changed since it was written"
    return None


def sha256_of(directory: AnyPath, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files by name, relative to a directory; several at once."""
    return _map_files(
        lambda file: hashlib.file_digest(file, "sha256").hexdigest(), directory, names
    )


def _digests_of(directory: AnyPath, names: Iterable[str]) -> dict[str, str]:
    """Return a digest of files by name, for damage: several times as fast as SHA-256.

    It is the SHA-256 of the sums of each block's 64-bit words, modulo 2^64: any flipped bit, block
    of zeros, moved block or other length changes it.
    """
    return _map_files(_block_digest, directory, names)


def _block_digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    words = np.zeros(_BLOCK_BYTES // 8, "<u8")
    block = memoryview(words).cast("B")
    while size := file.readinto(block):
        block[size:] = bytes(len(block) - size)
        digest.update(words.sum(dtype="<u8").tobytes())
        digest.update(size.to_bytes(8, "little"))
    return digest.hexdigest()


def _map_files(
    function: Callable[[IO[bytes]], str], directory: AnyPath, names: Iterable[str]
) -> dict[str, str]:
    def digest(name: str) -> str:
        with (directory / name).open("rb") as file:
            return function(file)

    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def sha256_of_values(values: Iterable[Any]) -> str:
    """Return the SHA-256 of plain values, as JSON."""
    encode = json.JSONEncoder(sort_keys=True, default=_plain).encode
    digest = hashlib.sha256()
    for value in values:
        digest.update(encode(value).encode() + b"\n")
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Describe an array, or an object of a user's task, whose default `repr` has an address."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    has_repr = type(value).__repr__ is not object.__repr__
    return repr(value) if has_repr else type(value).__qualname__


def _sizes(checkpoint: AnyPath) -> dict[str, int]:
    """Return the bytes of every file of the state, without orbax's metadata."""
    return {f"{STATE}/{name}": size for name, size in file_sizes(checkpoint / STATE).items()}
