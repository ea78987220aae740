"""Call a function in a process of its own, in which sets have a fixed order."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from entropy_rl.config.registry import import_object

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from entropy_rl.tasks.fresh_process import main; main()"
)


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
