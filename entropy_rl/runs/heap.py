"""Memory that is free in the process, but not returned to the system."""

from __future__ import annotations

import ctypes


def trim_heap() -> None:
    """Return the free memory of the heap to the system, where the C library is glibc.

    It would add to the peak of what comes next. Compilation leaves 0.2 to 0.5 GiB, the threads that
    write a checkpoint as much as it has, and on CPUs sampling most of its arrays.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
