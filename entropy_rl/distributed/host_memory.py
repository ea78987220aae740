"""Memory of the machine and of this process."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import Any

import jax


def trim_heap() -> None:
    """Return the free memory of the heap to the system, where the C library is glibc.

    It would add to the peak of what comes next. Compilation leaves 0.2 to 0.5 GiB, the threads that
    write a checkpoint as much as it has, and on CPUs sampling most of its arrays.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def process_bytes() -> int:
    """Return the resident bytes of this process; without /proc, the most it has had."""
    try:
        return int(_read("/proc/self/statm").split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def free_bytes() -> int | None:
    """Return the bytes that processes may still take, swap included; None if it is not known."""
    try:
        lines = _read("/proc/meminfo").splitlines()
        of = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)}
        free = 1024 * (int(of["MemAvailable"]) + int(of["SwapFree"]))
    except (OSError, KeyError):
        return None
    group = Path("/sys/fs/cgroup")  # the limit of a container
    try:
        limit = int(_read(group / "memory.max"))
        stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())
        used = int(_read(group / "memory.current")) - int(stat["inactive_file"])
    except (OSError, KeyError, ValueError):  # there is none
        return free
    return min(free, limit - used)


def _read(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8")


def check_memory(arrays: Any, what: str) -> None:
    """Check that new arrays fit into the free memory of a machine whose devices are its CPUs.

    Without this, the system kills the process, which cannot say why. Arrays of several processes
    are taken as sharded over all of them.

    Args:
      arrays: A nest of arrays, or their shapes.
      what: Name of the arrays, for the error.

    Raises:
      ValueError: If there is not enough.
    """
    if jax.default_backend() != "cpu" or (free := free_bytes()) is None:
        return
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays)) / jax.process_count()
    if size > free:
        raise ValueError(
            f"free memory of the machine: must be at least {size / 1e9:.3g} GB for {what}, got "
            f"{free / 1e9:.3g} GB (`entropy-rl plan` shows what a run takes)"
        )
