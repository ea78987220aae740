"""Runner of a study: each phase of a unit is a command in a child process.

Device memory and compiled programs end with the child, and a crash or an out-of-memory error ends
one run, not the study. The commands are those that a user would type. `train` and `evaluate` resume
by themselves; the study records which phases are done.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from entropy_rl.runs.lock import LOCK_FILE, one_writer
from entropy_rl.runs.preemption import StopRequest, catch_signals
from entropy_rl.runs.provenance import STARTS_FILE
from entropy_rl.studies.grid import EVALUATE, TRAIN, Design, Unit, command_line
from entropy_rl.studies.machine import Machine, find_machine
from entropy_rl.studies.plan import format_duration, format_time_left, time_left
from entropy_rl.studies.records import (
    incomplete,
    is_complete,
    read_record,
    read_records,
    write_problems,
    write_record,
)

LOG_FILE = "log.txt"
_RUNNING_FILE = "running"  # held by the children, which may outlive a study that was killed
_POLL_SECONDS = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STOPPED = tuple(code for number in _SIGNALS for code in (128 + number, -number))
# If the study is killed, the kernel sends SIGTERM to its children, so that they save and exit.
_CHILD = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
if {cores}:
    os.sched_setaffinity(0, {cores})
if os.getppid() != {parent}:
    sys.exit(143)
from entropy_rl.cli.main import main
sys.exit(main())
"""


@dataclasses.dataclass
class _RunningPhase:
    """A phase in a child process, of a unit or of several that are trained together."""

    units: tuple[Unit, ...]
    phase: str
    cores: list[int]  # as in `Machine`
    child: subprocess.Popen
    started: float
    asked: bool = False  # to stop; a second signal would end it at once


def run_units(design: Design, log: Callable[[str], None]) -> None:
    """Run all units that are not complete, `parallel` at once.

    A run that fails is recorded, and the others continue.

    Args:
      design: The study; its directory exists.
      log: Receives lines of progress.

    Raises:
      ValueError: Another process is running this study.
      Interrupted: The study was asked to stop; the current runs have saved their state.
    """
    directory = design.directory
    with one_writer(directory / LOCK_FILE, f"output: {directory}"), catch_signals() as stop:
        _wait_for_orphans(directory, stop, log)
        waiting = deque(incomplete(read_records(design), design.study.only))
        machine = find_machine(design.study.parallel) if waiting else Machine("", [])
        free = list(machine.cores)
        running: list[_RunningPhase] = []
        try:
            while running or (waiting and not stop):
                while waiting and not stop and free:
                    units = _take_next(design, waiting)
                    running.append(_start(design, units, free.pop(0), log))
                ended = _wait_for_one(running, stop)
                running.remove(ended)
                free.append(ended.cores)
                # Their next phases, before any other unit begins.
                waiting.extendleft(reversed(_record_end(design, ended, machine.text, stop, log)))
                if stop and not running:
                    names = " and ".join(map(str, ended.units))
                    stop.act(f"stopped during {names}; the same command resumes the study")
        except BaseException:  # a second signal: kill at once
            for other in running:
                other.child.kill()
            raise
        stop.act("stopped between two runs; the same command resumes the study")


def _take_next(design: Design, waiting: deque[Unit]) -> tuple[Unit, ...]:
    """Take the next unit, and those that are trained together with it.

    All units of a group end together, so that a resumed study has the same groups. One that has
    begun is not trained together with one that has not, which would take it back to its first step.
    """
    units = [waiting.popleft()]
    if _next_phase(design, units[0]) == TRAIN:
        begun = _has_begun(design, units[0])
        trained = [
            unit
            for unit in waiting
            if _next_phase(design, unit) == TRAIN and _has_begun(design, unit) == begun
        ]
        for unit in trained[: design.study.stacked - 1]:
            waiting.remove(unit)
            units.append(unit)
    return tuple(units)


def _has_begun(design: Design, unit: Unit) -> bool:
    return (design.directory_of(unit) / TRAIN / STARTS_FILE).exists()


def _next_phase(design: Design, unit: Unit) -> str:
    done = read_record(design.directory_of(unit)).done
    return next(phase for phase in unit.phases if phase not in done)


def _start(
    design: Design, units: tuple[Unit, ...], cores: list[int], log: Callable[[str], None]
) -> _RunningPhase:
    file, phase = design.directory_of(units[0]) / LOG_FILE, _next_phase(design, units[0])
    for unit in units:
        design.directory_of(unit).mkdir(parents=True, exist_ok=True)
        log(f"{_position(design, unit)}: {phase}, log in {file}")
    started = time.monotonic()
    child = _start_child(design, units, phase, cores)
    return _RunningPhase(units, phase, cores, child, started)


def _position(design: Design, unit: Unit) -> str:
    units = design.units()
    return f"study {units.index(unit) + 1}/{len(units)}  {unit}"


def _start_child(
    design: Design, units: tuple[Unit, ...], phase: str, cores: list[int]
) -> subprocess.Popen:
    """Start a command on the given cores; its output is appended to the log of the first unit."""
    code = _CHILD.format(parent=os.getpid(), cores=cores)
    arguments = design.command(units, phase)
    with (
        (design.directory / _RUNNING_FILE).open("w", encoding="utf-8") as running,
        (design.directory_of(units[0]) / LOG_FILE).open("a", encoding="utf-8") as log,
    ):
        fcntl.flock(running, fcntl.LOCK_SH)
        log.write(f"$ {command_line(arguments)}\n")
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[running.fileno()],
            start_new_session=True,  # Ctrl-C reaches the study only, which forwards it
        )


def _wait_for_one(running: list[_RunningPhase], stop: StopRequest) -> _RunningPhase:
    """Wait for the first child that exits; a request to stop is forwarded to all of them."""
    while True:
        for one in running:
            if one.child.poll() is not None:
                return one
        for one in running:
            if stop and not one.asked:
                one.child.terminate()
                one.asked = True
        time.sleep(_POLL_SECONDS)


def _record_end(
    design: Design,
    ended: _RunningPhase,
    machine: str,
    stop: StopRequest,
    log: Callable[[str], None],
) -> list[Unit]:
    """Record how a phase ended; returns the units that have another phase to run."""
    code, phase = ended.child.returncode, ended.phase
    seconds = (time.monotonic() - ended.started) / len(ended.units)
    failed = None
    if code in _STOPPED:
        if not stop:  # a signal to a run is taken as a request to stop the study
            stop.signal_number = code - 128 if code > 0 else -code
    elif code:
        failed = _failure(design.directory_of(ended.units[0]), phase, code)
    for unit in ended.units:
        directory = design.directory_of(unit)
        if code == 0 and phase == EVALUATE:
            write_problems(directory, directory / EVALUATE)
        record = read_record(directory).after(phase, seconds, machine, failed, done=code == 0)
        write_record(directory, record)
        if record.failed:
            log(f"{_position(design, unit)}: {record.failed}")
        elif is_complete(unit, record):
            left = time_left(
                read_records(design), design.study.parallel, design.study.only, machine
            )
            spent = format_duration(record.total_seconds)
            log(f"{_position(design, unit)}: {spent}; {format_time_left(left)}")
    return [unit for unit in ended.units if code == 0 and phase != unit.phases[-1]]


def _failure(directory: Path, phase: str, code: int) -> str:
    lines = (directory / LOG_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    return f"{phase} failed ({how}): {last}" if last else f"{phase} failed ({how})"


def _wait_for_orphans(directory: Path, stop: StopRequest, log: Callable[[str], None]) -> None:
    """Wait for the children of a study that was killed, while they save their state."""
    with (directory / _RUNNING_FILE).open("w", encoding="utf-8") as file:
        logged = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not logged:
                    log("waiting for the runs of a study that was killed to save their state")
                    logged = True
            time.sleep(_POLL_SECONDS)
            stop.act("stopped before any run")
