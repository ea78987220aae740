"""Run Python code in a process that can do nothing but compute.

Landlock leaves the process its own folder and, to read, the standard library; a seccomp filter
leaves it the system calls of computations. Both need no privileges.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from entropy_rl.tasks.tools import confined

_FILE_SIZE, _FOLDER_SIZE = 1 << 20, 16 << 20  # bytes
_CLOCK_LIMIT = 10  # wall-clock seconds for each CPU second; isolated code cannot sleep
_TICK_S = 0.05  # between two looks at the folder
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")  # which extension modules load
_ADDR_NO_RANDOMIZE = 0x0040000

_PROBE = """
import os, socket
for attempt in (
    lambda: open("/etc/passwd"), lambda: os.listdir("/"), socket.socket, os.fork,
    lambda: os.kill(os.getppid(), 0), lambda: os.chmod(".", 0o777), lambda: os.open("..", 0),
):
    try:
        attempt()
    except OSError:
        continue
    raise SystemExit("the process is not isolated")
open("file", "w").write("42")
print(open("file").read())
"""


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """Limits of a process that runs code.

    Attributes:
      isolate: Whether it is isolated from files, network and processes; without, the limits alone
        hold.
      cpu_s: CPU seconds; a process that waits is stopped after 10 times as many wall-clock seconds.
      memory_mib: Address space, in MiB.
      output: Characters of the output that are kept.
    """

    isolate: bool = True
    cpu_s: int = 2
    memory_mib: int = 512
    output: int = 20_000

    def run(self, code: str, seed: int = 0) -> str:
        """Run code as a script in a process and an empty folder of its own.

        Args:
          code: Python code; it may import the standard library.
          seed: Seed of the module `random`.

        Returns:
          What it writes to stdout and stderr, with the traceback of an exception, and a line that
          says which limit it reached.

        Raises:
          RuntimeError: The kernel cannot isolate it.
        """
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            process = self._start(folder, seed)
            output, reached = self._watch(process, code, Path(folder))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        text = output.decode(errors="replace")
        if status == confined.NO_ISOLATION:
            raise RuntimeError(text.strip())
        if len(text) > self.output:
            text, reached = text[: self.output], reached or f"{self.output} characters of output"
        if reached is None and status == -signal.SIGXCPU:
            reached = f"{self.cpu_s} CPU seconds"
        lines = [text.rstrip()]
        if reached is not None:
            lines.append(f"error: stopped at the limit of {reached}")
        elif status < 0:
            lines.append(f"error: ended by {signal.Signals(-status).name}")
        return "\n".join(line for line in lines if line)

    def check(self) -> None:
        """Run a probe.

        Raises:
          RuntimeError: The kernel cannot isolate a process, or does so incompletely.
        """
        if self.isolate and (found := self.run(_PROBE)) != "42":
            raise RuntimeError(found.splitlines()[-1] if found else "the probe wrote nothing")

    def _start(self, folder: str, seed: int) -> subprocess.Popen:
        paths = sysconfig.get_paths()
        readable = {paths["stdlib"], paths["platstdlib"], f"{sys.base_prefix}/lib", *_LIBRARIES}
        settings = {
            "isolate": self.isolate,
            "folder": folder,
            "readable": sorted(path for path in readable if Path(path).is_dir()),
            "cpu_s": self.cpu_s,
            "memory": self.memory_mib << 20,
            "file_size": _FILE_SIZE,
            "seed": seed,
        }
        flags = ["-s", "-S", "-P", "-B", "-X", "utf8"]
        with _fixed_addresses():
            return subprocess.Popen(
                [sys.executable, *flags, confined.__file__, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8:backslashreplace"},
                start_new_session=True,
            )

    def _watch(
        self, process: subprocess.Popen, code: str, folder: Path
    ) -> tuple[bytes, str | None]:
        """Read the output until it ends, or a limit is reached; returns it and the limit."""
        until, output = time.monotonic() + _CLOCK_LIMIT * self.cpu_s, b""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(code.encode(errors="backslashreplace"))
            process.stdin.close()
        with process.stdout as stdout:
            poll = select.poll()  # `select` takes no handles above 1023
            poll.register(stdout, select.POLLIN)
            while time.monotonic() < until:
                if _size(folder) > _FOLDER_SIZE:
                    return output, f"{_FOLDER_SIZE >> 20} MiB of files"
                if not poll.poll(1000 * _TICK_S):
                    continue
                read = os.read(stdout.fileno(), 1 << 16)
                output += read
                if not read:
                    return output, None
                if len(output) > 4 * self.output:  # a character has at most 4 bytes
                    return output, f"{self.output} characters of output"
        return output, f"{_CLOCK_LIMIT * self.cpu_s} seconds"


@contextlib.contextmanager
def _fixed_addresses() -> Iterator[None]:
    """Load programs that are started at fixed addresses, which an output may show, where the kernel
    admits it.
    """
    personality = ctypes.CDLL(None).personality
    before = personality(ctypes.c_ulong(0xFFFFFFFF))
    personality(ctypes.c_ulong(before | _ADDR_NO_RANDOMIZE))
    try:
        yield
    finally:
        personality(ctypes.c_ulong(before))


def _size(folder: Path) -> int:
    """Bytes of the files of a folder; code cannot make others in it."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
    return total
