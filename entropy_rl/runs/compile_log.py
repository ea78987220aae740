"""Log of compiled programs and their compile times, which dominate the first step of a run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import jax

from entropy_rl.distributed.host_memory import trim_heap

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"
_WORTH_TELLING = 1.0  # seconds
_NAMED = 5  # programs

_listeners: list[CompileLog] = []
_is_registered = False


class CompileLog:
    """Programs compiled, or read from the cache, since the last report."""

    def __init__(self):
        self._hit = threading.local()  # each thread compiles one program at a time
        self._clear()

    def _clear(self) -> None:
        self._seconds: dict[str, float] = {}
        self._programs = self._cached = 0

    def report(self, say: Callable[[str], None]) -> None:
        """Report the compiled programs in one line, if compiling took long.

        Args:
          say: Prints a line.
        """
        total = sum(self._seconds.values())
        if total < _WORTH_TELLING:
            return
        slowest = sorted(self._seconds.items(), key=lambda item: -item[1])[:_NAMED]
        names = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest)
        say(
            f"compiled {self._programs} programs in {total:.1f} s ({self._cached} from the cache): "
            f"{names}"
        )
        self._clear()

    def _on_hit(self) -> None:
        self._hit.value = True

    def _on_compiled(self, name: str, seconds: float) -> None:
        self._programs += 1
        self._cached += getattr(self._hit, "value", False)
        self._hit.value = False
        name = name.removeprefix("jit(").removesuffix(")")
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


@contextlib.contextmanager
def compile_log() -> Iterator[CompileLog]:
    """Record the programs that JAX compiles within the context.

    Before a program runs whose compilation took long, the memory that this left is given back: it
    would add to the peak.
    """
    global _is_registered
    if not _is_registered:  # jax has no public way to take a listener back
        jax.monitoring.register_event_listener(_hear_event)
        jax.monitoring.register_event_duration_secs_listener(_hear_duration)
        _is_registered = True
    log = CompileLog()
    _listeners.append(log)
    try:
        yield log
    finally:
        _listeners.remove(log)


def _hear_event(event: str, **_: object) -> None:
    if event == _FROM_CACHE:
        for log in _listeners:
            log._on_hit()


def _hear_duration(event: str, seconds: float, **about: object) -> None:
    if event == _COMPILED:
        if _listeners and seconds >= _WORTH_TELLING:
            trim_heap()
        for log in _listeners:
            log._on_compiled(str(about.get("fun_name", "a program")), seconds)
