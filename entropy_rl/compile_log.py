"""What was compiled and how long it took: the first step of a run is nothing else, and should say so."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"
_WORTH_NAMING = 0.5  # seconds

_listeners: list[CompileLog] = []
_is_registered = False


class CompileLog:
    """Programs that were compiled, or read from the cache, since it was made."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.programs = self.cached = 0
        self._start = time.perf_counter()
        self._hits = threading.local()

    def line(self) -> str:
        """One line for a person: how many programs, how long, which took longest."""
        total = sum(self.seconds.values())
        slow = sorted(((s, name) for name, s in self.seconds.items() if s >= _WORTH_NAMING), reverse=True)
        names = ", ".join(f"{name} {seconds:.1f} s" for seconds, name in slow)
        return (
            f"compiled {self.programs} programs in {total:.1f} s, {self.cached} of them from the cache"
            f"{': ' if names else ''}{names}; first step {time.perf_counter() - self._start:.1f} s"
        )

    def _on_hit(self) -> None:
        self._hits.last = True

    def _on_compiled(self, name: str, seconds: float) -> None:
        self.programs += 1
        self.cached += getattr(self._hits, "last", False)
        self._hits.last = False
        name = name.removeprefix("jit(").removesuffix(")")
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@contextlib.contextmanager
def compile_log() -> Iterator[CompileLog]:
    """Listens to the compiler."""
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
        for log in _listeners:
            log._on_compiled(str(about.get("fun_name", "a program")), seconds)


def keep_compiled_programs() -> None:
    """Lets jax keep what it compiles in the user's cache directory, unless they chose another place.

    Must be called before jax is first used.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(base / "entropy_rl" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
