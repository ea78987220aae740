"""The records of a run (metrics, samples), step timing, progress output."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from entropy_rl.escape import echo, printable
from entropy_rl.runs.directory import SAMPLES_FILE
from entropy_rl.runs.jsonl import keep_steps, write_jsonl
from entropy_rl.runs.loggers import LoggedRun, Loggers, StartLogger
from entropy_rl.runs.stored import METRICS_FILE, current_metrics

log = logging.getLogger(__name__)


class RunLog:
    """Writer of a run's metrics and samples, positioned after `last_step`.

    Args:
      directory: The run's directory.
      last_step: The step that the run resumes from; later lines are dropped.
      loggers: Other places for the metrics, as in `build_loggers`.
      config: Told to the loggers.
      every_step: Whether each step has metrics; if some are lost, a warning says so.
    """

    def __init__(
        self,
        directory: Path,
        last_step: int,
        loggers: Sequence[StartLogger],
        config: Mapping[str, Any],
        every_step: bool = False,
    ):
        file = directory / METRICS_FILE
        steps = keep_steps(file, last_step, current_metrics, once=True)
        if every_step and len(steps) < last_step:
            log.warning(
                "%s: must have a line for each of %d steps, got %d; the others are lost",
                file, last_step, len(steps),
            )  # fmt: skip
        file = directory / SAMPLES_FILE
        steps = keep_steps(file, last_step)
        if steps and max(steps) < last_step:
            log.warning(
                "%s: must have samples of %d steps, got none after step %d",
                file, last_step, max(steps),
            )  # fmt: skip
        self._directory = directory
        self._loggers = Loggers(loggers, LoggedRun(directory, last_step, config))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one step."""
        write_jsonl(self._directory / METRICS_FILE, [{"step": step} | dict(values)])
        self._loggers.metrics(step, values)

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record completions; each row has its step."""
        write_jsonl(self._directory / SAMPLES_FILE, rows)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._loggers.close()


class NoLog:
    """A `RunLog` that writes nothing, for all processes but the first."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Do nothing."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Clock:
    """Timer of the phases of a step.

    Args:
      on_phase: Called with the name of a phase that begins, and with "" when it ends.
    """

    def __init__(self, on_phase: Callable[[str], None] = lambda phase: None):
        self._on_phase = on_phase
        self.restart()

    def restart(self, **phases: float) -> None:
        """Start timing the next step.

        Args:
          **phases: Seconds of phases that it has had already.
        """
        self._start = time.perf_counter() - sum(phases.values())
        self._phases = phases

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase; it must end with a result on the host, since dispatch is asynchronous."""
        start = time.perf_counter()
        self._on_phase(phase)
        with jax.profiler.TraceAnnotation(phase):
            yield
        self._on_phase("")
        self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Record a phase that was timed elsewhere; times of the same phase in a step add up."""
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    def metrics(self, tokens: int) -> dict[str, float]:
        """Return time/PHASE and time/step in seconds, and time/tokens_per_second of the step."""
        step = time.perf_counter() - self._start
        phases = {f"time/{phase}": seconds for phase, seconds in self._phases.items()}
        return phases | {"time/step": step, "time/tokens_per_second": tokens / step}


class DeviceWork:
    """Tracks when asynchronous device work finishes.

    Args:
      wait: Blocks until the work is finished.
    """

    def __init__(self, wait: Callable[[], Any]):
        self._ready_at: float | None = None
        threading.Thread(target=self._watch, args=(wait,), daemon=True).start()

    def _watch(self, wait: Callable[[], Any]) -> None:
        with contextlib.suppress(Exception):  # the error is raised where the result is used
            wait()
        self._ready_at = time.perf_counter()

    def waited(self) -> float:
        """Return the seconds since the device finished the work; 0 if it has not."""
        ready_at = self._ready_at
        return 0.0 if ready_at is None else time.perf_counter() - ready_at


_SILENT_S = 20.0  # after which there is a plain line in any case
_MANY, _PER_UPDATE = 10_000, 500  # items of `track`: those between two lines, two updates
_WORKING = "working"


class Progress:
    """Progress output: a live bar on a terminal, periodic plain lines elsewhere.

    Plain output is never silent for longer than 20 seconds: then a thread prints the last note of
    the current phase, or its name.

    Args:
      title: Name of the work.
      total: Total steps.
      start: Steps already completed.
      every: Steps between plain lines.
      silent: Print nothing, because another process does.
    """

    def __init__(
        self, title: str, total: int, start: int = 0, every: int = 1, silent: bool = False
    ):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._title, self._total, self._every, self._done = title, total, every, start
        self._bar, self._silent = None, silent
        self._first: tuple[int, float] | None = None  # the first step shown, which compiles
        self._printed = time.monotonic()  # when the last plain line was
        self._doing, self._begun = _WORKING, self._printed  # of the current phase or step
        self._lock, self._closed = threading.Lock(), threading.Event()
        if sys.stderr.isatty() and not silent:
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        elif not self._silent:
            threading.Thread(target=self._break_silence, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._bar:
            with contextlib.suppress(OSError):  # of a terminal that is gone
                self._bar.stop()

    def phase(self, name: str) -> None:
        """Name the phase that begins, for the lines after 20 silent seconds; "" ends it."""
        self._doing, self._begun = name or _WORKING, time.monotonic()

    def _break_silence(self) -> None:
        wait = _SILENT_S
        while not self._closed.wait(wait):
            now = time.monotonic()
            wait = self._printed + _SILENT_S - now
            if wait <= 0:
                doing, seconds = self._doing, f"{now - self._begun:.0f} s"
                self._print(f"{self._title} {self._done}/{self._total}  {doing}, {seconds}")
                wait = _SILENT_S

    def say(self, text: str) -> None:
        """Print a line."""
        if self._bar:
            with contextlib.suppress(OSError):
                self._bar.console.print(printable(text), highlight=False, markup=False)
        else:
            self._print(text)

    def note(self, text: str) -> None:
        """Show a note between two steps; where there is no terminal, after 20 silent seconds."""
        self._doing = text
        if self._bar:
            self._bar.update(self._task, note=printable(text))

    def _print(self, line: str) -> None:
        if not self._silent:
            with self._lock:
                self._printed = time.monotonic()
                echo(line, file=sys.stderr)

    def show(self, done: int, note: str) -> None:
        """Show the number of completed steps, with a note."""
        passed, self._done = done // self._every > self._done // self._every, done
        self.phase("" if passed else note)
        if self._bar:
            self._bar.update(self._task, completed=done, note=printable(note))
        elif passed or done == self._total:
            left = self._time_left(done)
            self._print(f"{self._title} {done}/{self._total}  {note}{left and f'  left {left}'}")

    def _time_left(self, done: int) -> str:
        """Such as `12 min`, by the mean time of the steps after the first one shown."""
        now = time.perf_counter()
        if self._first is None:
            self._first = done, now
        steps, seconds = done - self._first[0], now - self._first[1]
        left = (self._total - done) * seconds / max(steps, 1)
        return f"{left / 60:.0f} min" if left >= 90 else ""


def track(title: str, items: Iterable[Any], total: int, note: str) -> Iterator[Any]:
    """Iterate over items, and show the progress if there are many.

    Args:
      title: Name of the work.
      items: The items.
      total: Their number.
      note: What has been done with those that were passed.
    """
    if total <= _MANY:
        yield from items
        return
    with Progress(title, total, every=_MANY) as progress:
        for done, item in enumerate(items, 1):
            yield item
            if done % _PER_UPDATE == 0 or done == total:
                progress.show(done, note)
