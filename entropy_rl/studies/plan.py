"""The plan of a study: its state, an estimate of the remaining time, and its commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from entropy_rl.config.study import BASE
from entropy_rl.studies.grid import Design, Unit, command_line
from entropy_rl.studies.machine import find_machine
from entropy_rl.studies.records import Record, incomplete, is_complete, read_records


def plan_text(design: Design) -> str:
    """The state of each unit, the estimated time, and the commands of each arm."""
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
            missing = [phase for phase in unit.phases if phase not in record.done]
            state = f"to do: {', '.join(missing)}"
        seconds = record.total_seconds if state == "complete" else expected[unit]
        time_text = "?" if seconds is None else format_duration(seconds)
        lines.append(f"{unit!s:{width}} {time_text:>8}  {state}")
    todo = sum(not is_complete(unit, record) for unit, record in records.items())
    left = format_time_left(time_left(records, parallel, machine=machine))
    summary = f"{todo} of {len(records)} units to do; {left}"
    return "\n".join([*lines, "", summary, "", *commands(design)])


def commands(design: Design) -> list[str]:
    """The commands of the first seed of each arm."""
    arms = [BASE, *design.study.arms]
    firsts = [Unit(arm, design.seeds(arm)[0]) for arm in arms]
    return [command_line(design.arguments(unit, phase)) for unit in firsts for phase in unit.phases]


def expected_seconds(records: Mapping[Unit, Record], machine: str = "") -> dict[Unit, float | None]:
    """Estimate the seconds of each unit from the finished ones.

    The estimate is the mean over finished units of the same arm, otherwise over those of all
    trained arms; None where there are none. Only units finished on `machine` count, unless there
    are none.

    Args:
      records: Unit -> its progress.
      machine: Description of this machine, `Machine.text`.
    """
    finished = {unit: record for unit, record in records.items() if is_complete(unit, record)}
    here = {unit: record for unit, record in finished.items() if record.machine == machine}
    here = here or finished

    def mean(wanted: Callable[[Unit], bool]) -> float | None:
        seconds = [record.total_seconds for unit, record in here.items() if wanted(unit)]
        return sum(seconds) / len(seconds) if seconds else None

    def expected(unit: Unit) -> float | None:
        of_arm = mean(lambda other: other.arm == unit.arm)
        if of_arm is None and unit.arm != BASE:
            return mean(lambda other: other.arm != BASE)
        return of_arm

    return {unit: expected(unit) for unit in records}


def time_left(
    records: Mapping[Unit, Record], parallel: int, only: Sequence[str] = (), machine: str = ""
) -> float | None:
    """Estimate the seconds until all units are complete.

    Args:
      records: Unit -> its progress.
      parallel: Runs at once.
      only: Count the units of these arms only; empty for all.
      machine: As in `expected_seconds`.

    Returns:
      Seconds; None if a unit has no estimate.
    """
    expected = expected_seconds(records, machine)
    left = [
        None if expected[unit] is None else max(expected[unit] - record.total_seconds, 0.0)
        for unit, record in incomplete(records, only).items()
    ]
    return None if None in left else sum(left) / parallel


def format_time_left(seconds: float | None) -> str:
    """Format the result of `time_left`, with the time of day of the end."""
    if seconds is None:
        return "time left not known before a run is complete"
    if not seconds:
        return "nothing left"
    end = time.strftime("%d %b %H:%M", time.localtime(time.time() + seconds))
    return f"about {format_duration(seconds)} left, until {end}"


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
