"""The machine that runs a study: its devices, and the CPU cores of each parallel run."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where the runs of a study are made.

    Attributes:
      text: Devices, jax version and CPU, for the records.
      cores: CPU cores of each parallel run; an empty list means all of them.
    """

    text: str
    cores: list[list[int]]


def find_machine(parallel: int) -> Machine:
    """Describe this machine and assign cores to `parallel` runs.

    jax is asked in a child process: a process that holds a device keeps it from the runs.
    """
    code = "import jax; devices = jax.devices(); "
    code += "print(f'{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    devices = found.stdout.strip() if found.returncode == 0 else "devices unknown"
    shared = f"; {parallel} runs at once" if parallel > 1 else ""
    text = f"{devices}; {os.cpu_count()} cores of {processor()}, {platform.system()}{shared}"
    # On a CPU device every run uses threads on all cores, and parallel runs slow one another down.
    # With an accelerator a run uses the cores only for verdicts and records.
    cores: list[list[int]] = [[]] * parallel
    if parallel > 1 and " x cpu," in devices and hasattr(os, "sched_setaffinity"):
        cores = share_cores(sorted(os.sched_getaffinity(0)), parallel)
    return Machine(text, cores)


def processor(file: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model of the CPU, which decides how sums are rounded; else its architecture."""
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, model = line.partition(":")
            if name.strip() == "model name" and model.strip():
                return " ".join(model.split())
    return platform.machine()


def share_cores(cores: Sequence[int], parallel: int) -> list[list[int]]:
    """Split cores into `parallel` parts of about equal size; one core each if there are too few."""
    if parallel >= len(cores):
        return [[cores[run % len(cores)]] for run in range(parallel)]
    bounds = [run * len(cores) // parallel for run in range(parallel + 1)]
    return [list(cores[first:end]) for first, end in itertools.pairwise(bounds)]
