"""Call a function in a process of its own: a new one with a fixed order of sets, or a fork."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from entropy_rl.config.registry import import_object

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from entropy_rl.tasks.fresh_process import main; main()"
)

_TIMERS = (signal.ITIMER_PROF, signal.ITIMER_REAL)


def call_in_fresh_process(function: str, *arguments: Any, must_be: str) -> Any:
    """Call a function in a new process with PYTHONHASHSEED=0.

    What depends on the order of sets is then the same in every run.

    Args:
      function: `module:function`; a ValueError that it raises is passed on.
      *arguments: Its arguments, as JSON has them.
      must_be: The beginning of the error of a process that fails, such as "PATH: must be ...".

    Returns:
      Its result, as JSON has it.

    Raises:
      ValueError: The function raises one, or the process fails.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", _BOOT, json.dumps([str(path) for path in sys.path])],
        input=json.dumps([function, arguments]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "JAX_PLATFORMS": "cpu"},
    )
    lines = done.stdout.splitlines()
    reply = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
    if "error" in reply:
        raise ValueError(reply["error"])
    if "result" not in reply:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise ValueError(f"{must_be}, got {last}")
    return reply["result"]


def main() -> None:
    """Read a call from stdin, and write its result to stdout."""
    function, arguments = json.load(sys.stdin)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            reply = {"result": import_object("function", function)(*arguments)}
        except ValueError as error:
            reply = {"error": str(error)}
    print(json.dumps(reply), file=out)


def call_in_fork(function: Callable[[], float]) -> float:
    """Call a function in a copy of this process, so that what it changes is lost with the copy.

    The copy has the limits of this process and what is left of its timers.

    Returns:
      The number that the function returns; what it runs can write another one in its place.

    Raises:
      RuntimeError: The copy ends without a number. If a timer ends it, this process ends too.
    """
    timers = [(which, signal.getitimer(which)[0]) for which in _TIMERS]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for which, left in timers:
                signal.setitimer(which, left)
            os.dup2(writer, 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # such as the pipe to the parent
            os.write(3, repr(float(function())).encode())
            status = 0
        except MemoryError:
            status = errno.ENOMEM
        finally:
            os._exit(status)
    os.close(writer)
    # It may have children that hold the pipe, so its end is not waited for.
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.set_blocking(reader, False)
    with open(reader, "rb") as pipe:
        written = pipe.read(64)
    if -status in (signal.SIGPROF, signal.SIGALRM):
        os.kill(os.getpid(), -status)
    try:
        return float(written)
    except (TypeError, ValueError):
        raise RuntimeError(f"the process died with status {status}") from None
