"""Run Python code in a process that can do nothing but compute.

Landlock leaves the process its own folder and, to read, the standard library and shared libraries;
a seccomp filter leaves it the system calls of computations. Both need no privileges.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
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

from entropy_rl.tasks import worker
from entropy_rl.tasks.tools import confined

RESERVE_S = 2.0  # of the time of a worker's item, for what follows the code
_FILE_SIZE, _FOLDER_SIZE = 1 << 20, 16 << 20  # bytes
_CLOCK_LIMIT = 10  # wall-clock seconds for each CPU second; isolated code cannot sleep
_THREADS = 64
_TICK_S = 0.05  # between two looks at the folder and the threads
# Folders with the shared libraries which extension modules load, also in that of the architecture.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_ARCHITECTURE = "x86_64-linux-gnu"
_ADDR_NO_RANDOMIZE = 0x0040000

_PROBE = f"""
import os, socket
for attempt in (
    lambda: open("/etc/passwd"), lambda: os.listdir("/"), socket.socket, os.fork,
    lambda: os.kill(os.getppid(), 0), lambda: os.chmod(".", 0o777), lambda: os.open("..", 0),
    lambda: open({confined.__file__!r}),
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
      cpu_s: CPU seconds; a process that waits is stopped after 10 times as many wall-clock seconds,
        in a worker process also 2 seconds before the time of its item ends.
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
        if sys.platform != "linux":
            raise RuntimeError(f"the sandbox: the system must be Linux, got {sys.platform}")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            process = self._start(folder)
            output, reached = self._watch(process, self._request(folder, code, seed), Path(folder))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = status = os.waitstatus_to_exitcode(status)
        text = output.removeprefix(confined.READY).decode(errors="replace")
        if reached is None and not output.startswith(confined.READY):
            raise RuntimeError((text.strip() or f"it ended with status {status}").splitlines()[-1])
        if len(text) > self.output:
            text, reached = text[: self.output], reached or f"{self.output} characters of output"
        # On a busy machine the kernel, which counts ticks for the limit, may count far more.
        used_s = used.ru_utime + used.ru_stime
        if reached is None and status == -signal.SIGKILL and used_s > 0.5 * self.cpu_s:
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

    def _request(self, folder: str, code: str, seed: int) -> bytes:
        """What the process reads: a line with its settings, and the code."""
        encoded = code.encode(errors="backslashreplace")
        readable, listed = _readable()
        settings = {
            "parent": os.getpid(),
            "size": len(encoded),
            "isolate": self.isolate,
            "folder": folder,
            "readable": readable,
            "listed": listed,
            "cpu_s": self.cpu_s,
            "memory": self.memory_mib << 20,
            "file_size": _FILE_SIZE,
            "seed": seed,
        }
        return json.dumps(settings).encode() + b"\n" + encoded

    def _start(self, folder: str) -> subprocess.Popen:
        flags = ["-s", "-S", "-P", "-B", "-X", "utf8"]
        with _fixed_addresses():
            return subprocess.Popen(
                [sys.executable, *flags, confined.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8:backslashreplace"},
                start_new_session=True,
            )

    def _watch(
        self, process: subprocess.Popen, request: bytes, folder: Path
    ) -> tuple[bytes, str | None]:
        """Read the output until the process ends or reaches a limit; returns it and the limit."""
        limit_s, left_s = _CLOCK_LIMIT * self.cpu_s, worker.remaining_s() - RESERVE_S
        until, output, is_open = time.monotonic() + min(limit_s, left_s), b"", True
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.close()
        with process.stdout as stdout:
            poll = select.poll()  # `select` takes no handles above 1023
            poll.register(stdout, select.POLLIN)
            while time.monotonic() < until:
                if _size(folder) > _FOLDER_SIZE:
                    return output, f"{_FOLDER_SIZE >> 20} MiB of files"
                if _threads(process.pid) > _THREADS:
                    return output, f"{_THREADS} threads"
                if not is_open:  # which code may do long before it ends
                    if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                        return output, None
                    time.sleep(0.001)
                elif poll.poll(1000 * _TICK_S):
                    read = os.read(stdout.fileno(), 1 << 16)
                    output, is_open = output + read, bool(read)
                    if len(output) > 4 * self.output:  # a character has at most 4 bytes
                        return output, f"{self.output} characters of output"
        return output, f"{limit_s} seconds" if limit_s <= left_s else "the time for all calls"


@functools.cache
def _readable() -> tuple[list[str], list[str]]:
    """Paths that code may read: the standard library without packages, and shared libraries.

    The second are folders that it may list, which an import does.
    """
    folders = {
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}),
    }
    of_libraries = {f"{sys.base_prefix}/lib", f"{sys.base_prefix}/{sys.platlibdir}", *_LIBRARIES}
    readable = set()
    for folder in filter(os.path.isdir, folders):
        names = set(os.listdir(folder)) - {"site-packages", "dist-packages"}
        readable |= {os.path.realpath(f"{folder}/{name}") for name in names}
    for folder in filter(os.path.isdir, of_libraries):
        names = [name for name in os.listdir(folder) if ".so" in name or name == _ARCHITECTURE]
        readable |= {os.path.realpath(f"{folder}/{name}") for name in names}
    return sorted(filter(os.path.exists, readable)), sorted(filter(os.path.isdir, folders))


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


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:  # it has ended
        return 0
