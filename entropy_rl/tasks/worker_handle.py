"""The parent's handle of a worker process: start it, send items, read replies, kill it."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Pipe
from typing import Any

from entropy_rl.tasks.task import JudgeError
from entropy_rl.tasks.worker import MOST_BYTES, RESTARTED, limits_memory

log = logging.getLogger(__name__)

_BOOT = (
    "import json, sys; fd, sys.path[:] = json.loads(sys.argv[1]); "
    "from entropy_rl.tasks.worker import serve; serve(fd)"
)
_MAX_REPLY = MOST_BYTES + 100  # with its nonce
_ALARMS = (-signal.SIGPROF, -signal.SIGALRM)  # exit statuses
_MAX_REASONS = 10  # logged reasons of crashes
_HEADER = struct.Struct("!i")  # of a message of multiprocessing.connection


class CrashLog:
    """Logs each distinct reason of a crash once, up to a limit.

    Args:
      log: The logger.
      what: What crashed, which begins the line.
    """

    def __init__(self, log: logging.Logger, what: str):
        self._log, self._what, self._reasons = log, what, set()

    def note(self, reason: str) -> None:
        """Log a reason unless it was logged before."""
        if reason not in self._reasons and len(self._reasons) < _MAX_REASONS:
            self._log.warning("%s crashed: %s", self._what, reason)
            self._reasons.add(reason)


@functools.cache
def _warn_of_memory(platform: str) -> None:
    log.warning(
        "processes of verifiers and environments have no limit of memory (memory_limit_bytes): "
        "%s does not enforce one",
        platform,
    )


class WorkerHandle:
    """One worker process with a pipe to it."""

    def __init__(self, settings: dict[str, Any]):
        if not limits_memory():
            _warn_of_memory(sys.platform)
        self.connection, theirs = Pipe()
        # -P: a json.py in the working directory must not shadow the standard library.
        boot = [
            sys.executable,
            "-P",
            "-c",
            _BOOT,
            json.dumps([theirs.fileno(), [str(p) for p in sys.path]]),
        ]
        try:
            # A process that is killed removes nothing, so its temporary files are removed here.
            self._folder = tempfile.mkdtemp(prefix="entropy_rl_")
            self.process = subprocess.Popen(
                boot,
                stdin=subprocess.DEVNULL,
                stdout=2,  # output of a verifier must not mix with that of the program
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # no Ctrl-C; its children are killed with it
                # A verifier must not open the trainer's device.
                # A verdict must not depend on the order of sets.
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "PYTHONHASHSEED": "0",
                    "TMPDIR": self._folder,
                },
            )
        except OSError as error:
            raise JudgeError(f"no verifier process can be started: {error}") from error
        finally:
            theirs.close()
        self.ready = False
        self.key: bytes | None = None  # the current item
        self.message = b""
        self.answered = 0  # items before the current one
        self._threads = 1  # of the process, after the last of them
        self.nonce = ""  # of the current item; its reply repeats it
        self._clock_limit_s = 0.0  # of the current item
        self._buffer = b""
        self.deadline = time.monotonic() + settings["warm_up_s"]
        with contextlib.suppress(OSError):  # died at once; reading the pipe reports it
            self.connection.send_bytes(json.dumps(settings).encode())

    def send(self, key: bytes, message: bytes, clock_limit_s: float) -> bool:
        """Send an item.

        Args:
          key: Identifies the item.
          message: The item as JSON.
          clock_limit_s: Wall-clock seconds until it is late.

        Returns:
          False if the process died while idle, which is no crash of the item.
        """
        if self.connection.poll():
            return False
        try:
            nonce = os.urandom(8).hex()
            self.connection.send_bytes(b'["%s", %s]' % (nonce.encode(), message))
        except OSError:
            return False
        self.key, self.message, self.nonce = key, message, nonce
        self._clock_limit_s = clock_limit_s
        self.deadline = time.monotonic() + clock_limit_s
        return True

    def receive(self) -> dict[str, Any] | None:
        """Read what has arrived. A message that the timers were restarted restarts the deadline.

        Returns:
          The reply; None while it is incomplete.

        Raises:
          EOFError: The process has closed the pipe.
          ValueError: The bytes are no reply to the current item: the check wrote them.
        """
        read = os.read(self.connection.fileno(), _MAX_REPLY)
        if not read:
            raise EOFError
        self._buffer += read
        while (message := self._next_message()) is not None:
            if RESTARTED not in message:
                if self._buffer:
                    raise ValueError("more than a reply")
                self._threads = message.pop("threads", 1)
                return message
            self.deadline = time.monotonic() + self._clock_limit_s
        return None

    def _next_message(self) -> dict[str, Any] | None:
        """Take a message out of the buffer; None while it is incomplete."""
        if len(self._buffer) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._buffer)
        begin, end = f'{{"nonce": "{self.nonce}"'.encode(), _HEADER.size + size
        is_reply = begin.startswith(self._buffer[_HEADER.size :][: len(begin)])
        if not is_reply or not 0 <= size <= _MAX_REPLY or (self.ready and self.key is None):
            raise ValueError("no reply")
        if len(self._buffer) < end:
            return None
        message = json.loads(self._buffer[_HEADER.size : end])
        self._buffer = self._buffer[end:]
        return message

    def may_have_failed_before(self, timed_out: bool) -> bool:
        """Whether an earlier item may be why the process of the current one was lost.

        It may have left anything that ends the process, but only threads take the time of others.
        """
        return self.answered > 0 and (self._threads > 1 or not timed_out)

    def wait_for_exit(self) -> None:
        """Wait a moment for a process that has closed its pipe, so that its status is its own."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1)

    def describe_end(self, status: int) -> str | None:
        """Describe the death of a process; None if a limit of time ended it.

        Args:
          status: Its exit status.
        """
        if status in _ALARMS or self.deadline <= time.monotonic():
            return None
        memory = " (out of memory)" if status == errno.ENOMEM else ""
        return f"the process died with status {status}{memory}"

    def kill(self) -> int:
        """Kill the process and the children of the check, and remove their temporary files.

        Returns:
          Its exit status.
        """
        # macOS does not permit it where the process has ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # including child processes of the check
        self.connection.close()
        status = self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        return status
