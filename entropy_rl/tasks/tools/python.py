"""The tool `python`: code in a sandboxed process."""

from __future__ import annotations

import sys

from entropy_rl.config.checks import require
from entropy_rl.tasks.tools.sandbox import Sandbox
from entropy_rl.tasks.tools.tool import Tool

_PATH = "task.args.tools.python"
_NOTHING = "(no output; use print)"


def python_tool(sandbox: bool = True, cpu_s: int = 2, memory_mib: int = 512) -> Tool:
    """The tool `python`, each call of which is a script in a process and a folder of its own.

    Args:
      sandbox: Isolate the process from files, network and other processes (Linux 6.2 or later on
        x86-64). `off` for limits alone, where code that a model writes may do anything.
      cpu_s: CPU seconds of a call.
      memory_mib: Address space of a call, in MiB.

    Raises:
      ValueError: A setting is out of range, or the kernel cannot isolate a process.
    """
    require(sys.platform == "linux", _PATH, sys.platform, "used on Linux")
    require(cpu_s >= 1, f"{_PATH}.cpu_s", cpu_s, ">= 1")
    require(memory_mib >= 64, f"{_PATH}.memory_mib", memory_mib, ">= 64")
    box = Sandbox(sandbox, cpu_s, memory_mib)
    try:
        box.check()
    except RuntimeError as error:
        raise ValueError(
            f"{_PATH}.sandbox: must be off where the kernel cannot isolate a process ({error}), "
            "got on"
        ) from None

    def python(code: str, seed: int) -> str:
        return box.run(code, seed) or _NOTHING

    about = "Run a Python script and return what it prints."
    code = {"type": "string", "description": "The script; the standard library is available."}
    return Tool("python", python, about, {"code": code}, ("code",), takes_seed=True, seconds=cpu_s)
