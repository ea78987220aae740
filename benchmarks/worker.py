"""One system in a process of its own: reads a command per line of JSON, answers with a line of
JSON.

    {"do": "versions"}                              -> {package: version}
    {"do": "probe", "directory": D, "file": F, "lora": whether an adapter is trained}
                                                    -> {}; the arrays go into F (npz)
    {"do": "prepare", "directory": D, "work": W, "option": name or null}
                                                    -> {"option", "options", "first"}
    {"do": "run", "number": n}                      -> a measurement

A failure is answered with {"error": one line}.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[int], int | dict[str, int]]


def _cpu() -> float:
    """CPU-seconds of this process and of those that it has started and that still run."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = usage.ru_utime + usage.ru_stime
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _status(field: str) -> int:
    """A size of this process by the kernel, in bytes; 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def _reset_peak() -> bool:
    """Makes the peak of memory that of now; False where the kernel does not permit it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _return_free_memory() -> None:
    """Gives what was freed back to the system: it belongs to an earlier run."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def measure(run: Run, number: int) -> dict[str, float]:
    """Runs once.

    Returns:
      wall and cpu (seconds; all threads of this process, and the processes that it has started),
      tokens (useful ones) and other counts of the run, peak_rss and rss_before (bytes), and
      peak_is_of_run: whether the peak could be reset before.
    """
    _return_free_memory()
    permitted = _reset_peak()
    before = _status("VmRSS")
    cpu, start = _cpu(), time.perf_counter()
    counts = run(number)
    wall, cpu = time.perf_counter() - start, _cpu() - cpu
    return {
        "wall": wall,
        "cpu": cpu,
        **(counts if isinstance(counts, dict) else {"tokens": counts}),
        "peak_rss": _status("VmHWM"),
        "rss_before": before,
        "peak_is_of_run": permitted,
    }


def choose(options: dict[str, Callable[[], Run]]) -> tuple[Run, dict]:
    """Builds every option, runs it twice and keeps the one whose second run took the fewest
    CPU-seconds.

    Returns:
      (its run, {"option": name, "options": {name: CPU-seconds or an error}, "first": its first
      measurement}).

    Raises:
      RuntimeError: If no option works.
    """
    best, tried = None, {}
    for name, make in options.items():
        try:
            run = make()
            first = measure(run, 0)
            tried[name] = measure(run, 1)["cpu"] if len(options) > 1 else first["cpu"]
        except Exception as error:
            if len(options) == 1:
                raise
            tried[name] = one_line(error)
            continue
        if best is None or tried[name] < tried[best[0]]:
            best = (name, run, first)
        run = None
    if best is None:
        raise RuntimeError(f"no option works: {tried}")
    name, run, first = best
    return run, {"option": name, "options": tried, "first": first}


def one_line(error: BaseException) -> str:
    """The kind of error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def main() -> None:
    """Serves until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    system = run = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if system is None:
                system = importlib.import_module(f"systems.{sys.argv[1]}")
            if command["do"] == "versions":
                answer = system.versions()
            elif command["do"] == "probe":
                found = system.probe(Path(command["directory"]), command["lora"])
                np.savez(command["file"], **found)
                answer = {}
            elif command["do"] == "prepare":
                options = system.options(Path(command["directory"]), command["work"])
                wanted = command.get("option")
                run, answer = choose({wanted: options[wanted]} if wanted in options else options)
            else:
                answer = measure(run, command["number"])
        except Exception as error:
            traceback.print_exc()
            answer = {"error": one_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
