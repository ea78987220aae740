"""Memory of this process, and what is free in it without being returned to the system."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path


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
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
