"""Runs what is missing of a study, each run a child process.

Each phase of a unit is the verb itself in a process of its own. So the memory of a run and what it
compiled go with it, a crash or an out-of-memory ends one run and not the study, and what the study
does is what its commands do by hand. `train` and `evaluate` resume by themselves; the study only
remembers which are done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import os
import platform
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from entropy_rl.config.study import BASE
from entropy_rl.runs.preemption import StopRequest, catch_signals
from entropy_rl.studies.grid import EVALUATE, Design, Unit, command_line
from entropy_rl.studies.records import Record, read_record, write_problems, write_record

LOG_FILE = "log.txt"
_LOCK_FILE = "lock"  # held by the process of the study
_RUNNING_FILE = "running"  # held by the children at work, which may outlive a study that was killed
_PATIENCE = 0.1  # seconds between two looks at the children
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)
# A study that is killed leaves no run behind that goes on for hours: the kernel tells it to save
# and end.
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
class _Running:
    """A phase of a unit at work."""

    unit: Unit
    phase: str
    cores: list[int]  # that it has for itself; empty where all may use all
    child: subprocess.Popen
    since: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the runs of this process are made on."""

    text: str
    cores: list[list[int]]  # of each run that is at work at once, as in `_Running`


def run_units(design: Design, say: Callable[[str], None]) -> None:
    """Runs all units that are not complete, `parallel` at once; one that failed is noted, the
    others go on.

    Args:
      design: The study, whose directory is there.
      say: Called with lines on how far things are.

    Raises:
      ValueError: If another process is running this study.
      Interrupted: If it was asked to stop; the runs at hand have saved their state.
    """
    with _locked(design.directory), catch_signals() as stop:
        _wait_for_orphans(design.directory, stop, say)
        waiting = deque(to_do(read_records(design), design.study.only))
        machine = find_machine(design.study.parallel) if waiting else Machine("", [])
        free = list(machine.cores)
        running: list[_Running] = []
        try:
            while running or (waiting and not stop):
                while waiting and not stop and free:
                    running.append(_start(design, waiting.popleft(), free.pop(0), say))
                ended = _wait_for_one(running, stop)
                running.remove(ended)
                free.append(ended.cores)
                if _note(design, ended, machine.text, stop, say):
                    waiting.appendleft(ended.unit)  # its next phase, before any other unit begins
                if stop and not running:
                    stop.act(f"stopped during {ended.unit}; the same command goes on from there")
        except BaseException:  # a second signal: at once
            for other in running:
                other.child.kill()
            raise
        stop.act("stopped between two runs; the same command goes on from there")


def is_complete(unit: Unit, record: Record) -> bool:
    """Whether all phases of a unit are done."""
    return set(unit.phases) <= set(record.done)


def read_records(design: Design) -> dict[Unit, Record]:
    """The records of all units."""
    return {unit: read_record(design.directory_of(unit)) for unit in design.units()}


def to_do(records: Mapping[Unit, Record], only: Sequence[str]) -> dict[Unit, Record]:
    """The units that are not complete, of some arms, or of all where none is named."""
    return {
        u: r for u, r in records.items() if not is_complete(u, r) and (not only or u.arm in only)
    }


def total(record: Record) -> float:
    """Seconds that were spent on a unit."""
    return sum(record.seconds.values())


def expected_seconds(records: Mapping[Unit, Record], machine: str = "") -> dict[Unit, float | None]:
    """Seconds that each unit takes: the mean of the finished ones of its arm, else of all trained
    arms.

    None where there are none. What another machine took counts only where this one has finished
    nothing.
    """
    finished = {unit: record for unit, record in records.items() if is_complete(unit, record)}
    here = {
        unit: record for unit, record in finished.items() if record.machine == machine
    } or finished

    def mean(wanted: Callable[[Unit], bool]) -> float | None:
        found = [total(record) for unit, record in here.items() if wanted(unit)]
        return sum(found) / len(found) if found else None

    def expected(unit: Unit) -> float | None:
        of_arm = mean(lambda other: other.arm == unit.arm)
        return (
            mean(lambda other: other.arm != BASE) if of_arm is None and unit.arm != BASE else of_arm
        )

    return {unit: expected(unit) for unit in records}


def time_left(
    records: Mapping[Unit, Record], parallel: int, only: Sequence[str] = (), machine: str = ""
) -> float | None:
    """Seconds until all units, or those of some arms, are complete, with so many at once; None
    while nothing can be said."""
    expected = expected_seconds(records, machine)
    left = [
        None if expected[unit] is None else max(expected[unit] - total(record), 0.0)
        for unit, record in to_do(records, only).items()
    ]
    return None if None in left else sum(left) / parallel


def say_left(seconds: float | None) -> str:
    """An estimated end in words."""
    if seconds is None:
        return "time left not known before a run is complete"
    if not seconds:
        return "nothing left"
    end = time.strftime("%d %b %H:%M", time.localtime(time.time() + seconds))
    return f"about {duration(seconds)} left, until {end}"


def plan_text(design: Design) -> str:
    """What there is to do: a line for each unit, the estimated time, and the commands of each
    arm.
    """
    records, parallel = read_records(design), design.study.parallel
    machine = find_machine(parallel).text
    expected = expected_seconds(records, machine)
    width = max(len(str(unit)) for unit in records)
    lines = []
    for unit, record in records.items():
        state = "complete" if is_complete(unit, record) else "to do"
        if record.failed:
            state = f"to do again: {record.failed}"
        elif record.done and state == "to do":
            state = (
                f"to do: {', '.join(phase for phase in unit.phases if phase not in record.done)}"
            )
        seconds = total(record) if state == "complete" else expected[unit]
        lines.append(
            f"{unit!s:{width}} {'?' if seconds is None else duration(seconds):>8}  {state}"
        )
    todo = sum(not is_complete(unit, record) for unit, record in records.items())
    left = say_left(time_left(records, parallel, machine=machine))
    summary = f"{todo} of {len(records)} units to do; {left}"
    return "\n".join([*lines, "", summary, "", *commands(design)])


def commands(design: Design) -> list[str]:
    """The commands of the first seed of each arm."""
    arms = [BASE, *design.study.arms]
    firsts = [Unit(arm, design.seeds(arm)[0]) for arm in arms]
    return [command_line(design.arguments(unit, phase)) for unit in firsts for phase in unit.phases]


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _start(design: Design, unit: Unit, cores: list[int], say: Callable[[str], None]) -> _Running:
    directory = design.directory_of(unit)
    directory.mkdir(parents=True, exist_ok=True)
    done = read_record(directory).done
    phase = next(phase for phase in unit.phases if phase not in done)
    say(f"{_place(design, unit)}: {phase}, log in {directory / LOG_FILE}")
    since = time.monotonic()
    return _Running(unit, phase, cores, _start_child(design, unit, phase, cores), since)


def _place(design: Design, unit: Unit) -> str:
    units = design.units()
    return f"study {units.index(unit) + 1}/{len(units)}  {unit}"


def _start_child(design: Design, unit: Unit, phase: str, cores: list[int]) -> subprocess.Popen:
    """Starts a verb on some cores, or on all; its output goes to the log of the unit."""
    code = _CHILD.format(parent=os.getpid(), cores=cores)
    command = [sys.executable, "-c", code, *design.arguments(unit, phase)]
    with (
        (design.directory / _RUNNING_FILE).open("w") as running,
        (design.directory_of(unit) / LOG_FILE).open("a") as log,
    ):
        fcntl.flock(running, fcntl.LOCK_SH)
        log.write(f"$ {command_line(design.arguments(unit, phase))}\n")
        log.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[running.fileno()],
            start_new_session=True,  # Ctrl-C reaches the study alone, which passes it on
        )


def _wait_for_one(running: list[_Running], stop: StopRequest) -> _Running:
    """The first that ends; a request to stop is passed on to all."""
    told = False
    while True:
        for one in running:
            if one.child.poll() is not None:
                return one
        if stop and not told:
            for one in running:
                one.child.terminate()
            told = True
        time.sleep(_PATIENCE)


def _note(
    design: Design, ended: _Running, machine: str, stop: StopRequest, say: Callable[[str], None]
) -> bool:
    """Writes down how a phase ended; returns whether its unit has another one to do."""
    unit, phase, code = ended.unit, ended.phase, ended.child.returncode
    directory = design.directory_of(unit)
    seconds = time.monotonic() - ended.since
    record = read_record(directory)
    if code == 0:
        if phase == EVALUATE:
            write_problems(directory, directory / EVALUATE)
        record = record.after(phase, seconds, machine, None, done=True)
    else:
        stopped = code in _STOPPED
        record = record.after(
            phase,
            seconds,
            machine,
            None if stopped else _reason(directory, phase, code),
            done=False,
        )
        if stopped and not stop:  # whoever stopped the run meant the study as well
            stop.signal_number = code - 128 if code > 0 else -code
    write_record(directory, record)
    if record.failed:
        say(f"{_place(design, unit)}: {record.failed}")
    elif is_complete(unit, record):
        left = time_left(read_records(design), design.study.parallel, design.study.only, machine)
        say(f"{_place(design, unit)}: {duration(total(record))}; {say_left(left)}")
    return code == 0 and not is_complete(unit, record)


def _reason(directory: Path, phase: str, code: int) -> str:
    lines = (directory / LOG_FILE).read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    return f"{phase} failed ({how}): {last}" if last else f"{phase} failed ({how})"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"output: {directory}: another process is running this study"
            ) from error
        yield


def _wait_for_orphans(directory: Path, stop: StopRequest, say: Callable[[str], None]) -> None:
    """Waits for runs that a study which was killed has left, and which are about to save their
    state.
    """
    with (directory / _RUNNING_FILE).open("w") as file:
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not said:
                    say(
                        "waiting for what a study that was killed has left: it saves its state "
                        "and ends"
                    )
                    said = True
            time.sleep(_PATIENCE)
            stop.act("stopped before anything was done")


def find_machine(parallel: int) -> Machine:
    """Devices, cores, jax, and how many runs share them.

    A child asks jax: a process that holds a device keeps it from the runs.
    """
    code = "import jax; devices = jax.devices(); "
    code += "print(f'{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    devices = found.stdout.strip() if found.returncode == 0 else "devices unknown"
    shared = f"; {parallel} runs at once" if parallel > 1 else ""
    text = f"{devices}; {os.cpu_count()} cores, {platform.system()} {platform.machine()}{shared}"
    # Where the device is the CPU, each run computes with threads on all cores, and two of them wait
    # for one another. Beside an accelerator a run needs cores for verdicts and records alone, now
    # and then.
    cores: list[list[int]] = [[]] * parallel
    if parallel > 1 and " x cpu," in devices and hasattr(os, "sched_setaffinity"):
        cores = share_cores(sorted(os.sched_getaffinity(0)), parallel)
    return Machine(text, cores)


def share_cores(cores: Sequence[int], parallel: int) -> list[list[int]]:
    """The cores of each of several runs: in parts of about one size, or one each where there are
    too few.
    """
    if parallel >= len(cores):
        return [[cores[place % len(cores)]] for place in range(parallel)]
    bounds = [place * len(cores) // parallel for place in range(parallel + 1)]
    return [list(cores[first:end]) for first, end in itertools.pairwise(bounds)]
