"""Handle SIGTERM, Ctrl-C and the end of a terminal: a run stops after the current step with
everything saved.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(Exception):
    """Raised after a run was asked to stop and has saved its state.

    Attributes:
      exit_code: 128 + the signal's number, as a shell reports it; launchers restart on it.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """The first signal received, if any."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def act(self, message: str) -> None:
        """Raise `Interrupted` if a stop was requested."""
        if self.signal_number is not None:
            raise Interrupted(message, self.signal_number)


@contextlib.contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Turn the first SIGTERM, SIGINT or SIGHUP into a stop request; a second SIGTERM or SIGINT has
    its default effect.

    SIGHUP, the end of a terminal or of its connection, is left alone where it is ignored, as under
    nohup. A further one has no effect: it comes twice, from the shell and from the kernel. Only the
    main thread of a process can catch signals; in other threads nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {}

    def remember(number: int, _: object) -> None:
        if not request:
            request.signal_number = number
        for caught, handler in previous.items():
            if caught != signal.SIGHUP:
                signal.signal(caught, handler)

    for number in (signal.SIGINT, *_ending_signals()):
        previous[number] = signal.signal(number, remember)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ending_signals() -> tuple[signal.Signals, ...]:
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ending_on_sigterm(message: str) -> Iterator[None]:
    """Raise `Interrupted` on SIGTERM or SIGHUP, so that context managers clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        if signal.SIGHUP in previous:  # it comes twice, and the second would end the cleanup
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise Interrupted(message, number)

    previous = {number: signal.signal(number, end) for number in _ending_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
