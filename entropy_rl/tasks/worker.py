"""A worker process: limit itself, warm up, answer items from a pipe.

What it does with an item is decided by the setting `handler`, `module:function`, which is called
with all settings and returns a function of an item, and of a function that restarts the timers,
which returns a reply.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TextIO

from entropy_rl.config.registry import import_object
from entropy_rl.tasks.judging import as_judgement
from entropy_rl.tasks.task import Verdict

# Of a reply without its nonce. A text of 30,000 characters has up to 180,000: JSON writes a control
# character as six.
MOST_BYTES = 1 << 18
RESTARTED = "restarted"  # in messages of progress, which are no replies

_item_ends = math.inf  # by time.monotonic


def serve(fd: int) -> None:
    """Warm up, report ready and answer until the pipe closes."""
    _outlive_stop_requests()
    sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
    # If the parent dies while a check is stuck, the alarm ends this process, even inside C code
    # that holds the interpreter.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # CPU time, unlike wall-clock time, does not depend on the load of the machine.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.set_inheritable(fd, False)
    connection = Connection(fd)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        settings = json.loads(connection.recv_bytes())
        signal.setitimer(signal.ITIMER_REAL, settings["warm_up_s"] + 1)
        try:
            _limit(resource.RLIMIT_CORE, 0)
            if limits_memory():
                _limit(resource.RLIMIT_AS, settings["memory_limit_bytes"])
            handle = import_object("handler", settings["handler"])(settings)
        except BaseException as error:  # whatever a user's code raises
            unfit = {"nonce": "", "unfit": describe(error, 2000)}
            connection.send_bytes(json.dumps(unfit).encode())
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(b'{"nonce": ""}')
        while True:
            nonce, item = json.loads(connection.recv_bytes())

            def restart(nonce: str = nonce) -> None:
                _start_timers(settings)
                connection.send_bytes(encode({"nonce": nonce, RESTARTED: True}))

            _start_timers(settings)
            reply = handle(item, restart)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            threads = threading.active_count()
            connection.send_bytes(encode({"nonce": nonce, "threads": threads, **reply}))


class _Output:
    """A stream whose reader may have gone, such as a terminal: a check that prints goes on."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _outlive_stop_requests() -> None:
    """Leave signals that end a run to its main process, which finishes the step before it saves.

    systemd sends them to all processes of a service or a session, as when a machine is taken back.
    Processes that a check starts get their own again, so that it can end them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    previous = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, lambda *_: None)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)


def remaining_s() -> float:
    """Wall-clock seconds until the current item is late; infinite outside of a worker."""
    return _item_ends - time.monotonic()


def _start_timers(settings: dict[str, Any]) -> None:
    global _item_ends
    _item_ends = time.monotonic() + settings["clock_limit_s"]
    signal.setitimer(signal.ITIMER_REAL, settings["clock_limit_s"] + 1)
    signal.setitimer(signal.ITIMER_PROF, settings["deadline_s"])


def encode(message: dict[str, Any]) -> bytes:
    """Return a message to the parent as JSON: UTF-8, in which a text of Chinese is half as long."""
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")


def too_large(reply: dict[str, Any]) -> str | None:
    """Return what is wrong with a reply that cannot be sent to the parent; None if it can."""
    size = len(encode(reply))
    if size <= MOST_BYTES:
        return None
    return f"at most {MOST_BYTES} bytes as JSON, got {size}"


def limits_memory() -> bool:
    """Whether the kernel limits the address space of a process; macOS refuses such a limit."""
    return sys.platform == "linux"


def describe(error: BaseException, limit: int = 300) -> str:
    """Return the type and the text of an exception of a user's code in one line."""
    try:
        text = " ".join(str(error).split())
    except BaseException as other:
        text = f"its text raises {type(other).__name__}"
    return f"{type(error).__name__}: {text}"[:limit]


def _limit(which: int, limit: int) -> None:
    hard = resource.getrlimit(which)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(which, (limit, limit))


def judging(settings: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """Import the check of a verifier and warm it up; returns the function that judges an item."""
    check = import_object("check", settings["check"])
    if settings["warm_up"] is not None:
        check(*settings["warm_up"])
    return functools.partial(_judge, check, settings["correct_at"])


def _judge(
    check: Callable, correct_at: float, item: list[str], restart: Callable[[], None]
) -> dict[str, Any]:
    try:
        value = check(*item)
    except MemoryError:
        # The memory may not be freed after the check: the next item gets a new process.
        os._exit(errno.ENOMEM)
    except BaseException as error:  # whatever a user's code raises
        return _crash(describe(error))
    try:
        judgement = as_judgement(value, correct_at)
    except ValueError as error:
        return _crash(f"its result {error}")
    fields = {"reward": judgement.reward, "parts": judgement.parts, "reason": ""}
    reply = {"verdict": judgement.verdict.value, **fields}
    reason = too_large(reply)
    return reply if reason is None else _crash(f"its result must be {reason}")


def _crash(reason: str) -> dict[str, Any]:
    return {"verdict": Verdict.CRASH.value, "reward": None, "parts": {}, "reason": reason}
