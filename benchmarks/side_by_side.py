"""Compares this library with google-tunix and TRL: the same model and work, in turns, each its own
process.

    python benchmarks/side_by_side.py --output results.json
    python benchmarks/side_by_side.py --systems ours trl --sizes small --work rollout --runs 3
    python benchmarks/side_by_side.py --work lora-update lora-step --output lora.json
    python benchmarks/side_by_side.py --show results.json --markdown

What is measured: the CPU-seconds of a system's process with all its threads, wall time, its peak
memory, and the useful tokens, which are response tokens up to and with the end of the sequence.
CPU-seconds are the figure that counts where other work runs beside. After a first run, which
compiles, the systems run in turns.

A system is only timed if its model gives the log-probs of ours; else its row says so, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import report
import workload
from environments import ROOT, SYSTEMS, EnvironmentFailed, environment_of, python_of

WORK = ("rollout", "score", "update", "step")
OF_LORA = ("lora-update", "lora-step")  # the same, by which an adapter alone is trained
OF_TURNS = "episodes"  # for the size `turns`, by systems that have environments
TOLERANCE = 1e-4  # of log-probs and entropies, in nats, between two implementations in float32


class WorkerFailed(Exception):
    """A worker answered with an error or died; the message is one line."""


class Worker:
    """The process of one system; a context manager."""

    def __init__(self, system: str, python: Path, log: Path):
        self.system = system
        self._log = log.open("a")
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("worker.py")), system],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment_of(system),
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __call__(self, **command: Any) -> dict[str, Any]:
        """Sends a command and waits for the answer.

        Raises:
          WorkerFailed: If it failed or the process ended, for example for want of memory.
        """
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerFailed(f"its process ended with {code}; see {self._log.name}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer


def say(message: str) -> None:
    """A line of progress."""
    print(message, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """CPU model, cores, memory, and the load at this moment."""
    cpu, memory = "unknown CPU", 0.0
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            (line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu
        )
        memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    load = round(os.getloadavg()[0], 2)
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory), "load": load}


def commit() -> str:
    """The commit of the checkout, with a + where files differ from it."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def check_models(
    workers: dict[str, Worker], directory: Path, lora: bool = False
) -> dict[str, dict[str, Any]]:
    """Compares log-probs, entropies, the norm of the gradient and the number of trained parameters
    of every other system with ours.

    Args:
      workers: system -> its process.
      directory: What `workload.prepare` wrote.
      lora: Whether an adapter is trained.

    Returns:
      system -> greatest differences (that of the norm is relative) and the number, or {"error": why
      it cannot be compared}.
    """
    found, checks = {}, {}
    if set(workers) == {"ours"}:  # nothing to compare
        return checks
    for system, worker in workers.items():
        file = directory / f"probe-{system}.npz"
        try:
            worker(do="probe", directory=str(directory), file=str(file), lora=lora)
            with np.load(file) as arrays:
                found[system] = dict(arrays)
        except WorkerFailed as error:
            checks[system] = {"error": str(error)}
    reference = found.pop("ours", None)
    for system, arrays in found.items():
        if reference is None:
            checks[system] = {"error": "ours is not there to be compared with"}
            continue
        gap = {
            name: float(np.abs(arrays[name] - reference[name]).max())
            for name in ("log_probs", "entropy")
        }
        norm, wanted = float(arrays["grad_norm"]), float(reference["grad_norm"])
        checks[system] = {
            "log_prob": gap["log_probs"],
            "entropy": gap["entropy"],
            "grad_norm": abs(norm - wanted) / wanted if wanted else abs(norm),
            "trainable": int(arrays["trainable"]),
        }
        if not max(gap.values()) < TOLERANCE:
            checks[system] = {
                "error": f"another model: log-probs differ by {gap['log_probs']:.1e} nats"
            }
        elif arrays["trainable"] != reference["trainable"]:
            checks[system] = {
                "error": f"trains {arrays['trainable']} parameters, ours {reference['trainable']}"
            }
    return checks


def run_case(
    workers: dict[str, Worker], directory: Path, work: str, runs: int, options: dict[str, str]
) -> dict[str, Any]:
    """Prepares every system, then times them in turns.

    Args:
      workers: system -> its process.
      directory: What `workload.prepare` wrote.
      work: One of WORK, OF_LORA or OF_TURNS.
      runs: Timed runs of each system.
      options: system -> the option to take, for systems that need not try out what they have.

    Returns:
      system -> {"option", "options", "first", "runs"}, or {"error"}.
    """
    results = {}
    for system, worker in workers.items():
        try:
            answer = worker(
                do="prepare", directory=str(directory), work=work, option=options.get(system)
            )
            results[system] = answer | {"runs": []}
            first = results[system]["first"]
            say(f"  {system}: {results[system]['option']}, first run {first['cpu']:.1f} CPU-s")
        except WorkerFailed as error:
            results[system] = {"error": str(error)}
            say(f"  {system}: {error}")
    for number in range(2, 2 + runs):  # 0 and 1 were for trying out
        for system, worker in workers.items():
            if "error" in results[system]:
                continue
            try:
                run = worker(do="run", number=number)
                results[system]["runs"].append(run)
                say(
                    f"  {system}: {run['cpu']:.2f} CPU-s, {run['wall']:.2f} s, {run['tokens']} "
                    "tokens, "
                    f"{run['peak_rss'] / report.MiB:.0f} MiB"
                )
            except WorkerFailed as error:
                results[system] = {"error": str(error)}
                say(f"  {system}: {error}")
    return results


def header(script: str) -> dict[str, Any]:
    """What says where a result comes from: command, date, commit, machine."""
    return {
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs everything that was asked for; see the module's docstring."""
    result = header("side_by_side.py") | {"versions": {}, "failed": {}, "checks": {}, "cases": []}
    pythons = {}
    for system in arguments.systems:
        try:
            pythons[system] = python_of(system, arguments.envs)
        except EnvironmentFailed as error:
            result["failed"][system] = str(error)
            say(f"{system}: {error}")

    @contextlib.contextmanager
    def start(systems):
        with contextlib.ExitStack() as stack:
            logs = {system: arguments.envs / f"{system}.log" for system in systems}
            yield {s: stack.enter_context(Worker(s, pythons[s], logs[s])) for s in systems}

    for size in arguments.sizes:
        directory = workload.prepare(
            arguments.envs / "workloads" / size, workload.SIZES[size]
        ).absolute()
        unfit = {}  # with and without LoRA: system -> {"error"}
        for lora in sorted({workload.kind_of(work)[1] for work in arguments.work}):
            name = f"{size}, LoRA of rank {workload.SIZES[size].lora_rank}" if lora else size
            say(f"{name}: is it the same model?")
            # Other processes than those that are timed, so that nothing of this counts as their
            # memory.
            with start(pythons) as workers:
                for system, worker in workers.items():
                    with contextlib.suppress(WorkerFailed):
                        result["versions"][system] = worker(do="versions")
                checks = result["checks"][name] = check_models(workers, directory, lora)
            say(f"  {checks}")
            # With nothing to compare with, the systems may be timed all the same.
            failures = checks.items() if "ours" in pythons else ()
            unfit[lora] = {system: check for system, check in failures if "error" in check}
        options = {}
        for work in arguments.work:
            say(f"{size}, {work}")
            kind, lora = workload.kind_of(work)
            with start([system for system in pythons if system not in unfit[lora]]) as workers:
                # The step's update is the update.
                known = options.get(lora, {}) if kind == "step" else {}
                systems = run_case(workers, directory, work, arguments.runs, known)
            if kind == "update":
                options[lora] = {
                    name: system["option"] for name, system in systems.items() if "option" in system
                }
            systems |= unfit[lora]
            result["cases"].append({"size": size, "work": work, "systems": systems})
            # A long comparison that is cut short leaves what it has.
            _save(arguments.output, result)
    return result


def _save(file: Path | None, result: dict[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")


def failed(result: dict[str, Any]) -> bool:
    """Whether anything that was asked for is missing."""
    systems = (system for case in result["cases"] for system in case["systems"].values())
    checks = (check for checks in result["checks"].values() for check in checks.values())
    return bool(result["failed"]) or any("error" in found for found in (*systems, *checks))


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Returns:
      The exit code: 1 if a system could not be compared.
    """
    description, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="default: all")
    add("--sizes", nargs="+", choices=workload.SIZES, default=["small"], help="default: small")
    most = f"default: {' '.join(WORK)}; {OF_TURNS} is for --sizes turns"
    add("--work", nargs="+", choices=[*WORK, *OF_LORA, OF_TURNS], default=list(WORK), help=most)
    add("--runs", type=int, default=5, help="timed runs of each, in turns; default: 5")
    where = "where environments and workloads are made; default: .cache/benchmarks"
    add("--envs", type=Path, default=ROOT / ".cache" / "benchmarks", help=where)
    add("--output", type=Path, help="a JSON file for every single run")
    add("--markdown", action="store_true", help="print what stands in the README")
    add("--show", type=Path, nargs="+", help="run nothing; print the tables of these JSON files")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs: {arguments.runs} is not allowed; allowed: >= 1")
    if arguments.show:
        try:
            results = [json.loads(file.read_text()) for file in arguments.show]
        except (OSError, ValueError) as error:
            parser.error(f"--show: {error}")
    else:
        arguments.envs.mkdir(parents=True, exist_ok=True)
        results = [compare(arguments)]
        _save(arguments.output, results[0])
    for result in results:
        text = report.markdown(result)
        print((text if arguments.markdown else report.aligned(text)) + "\n")
    return int(any(failed(result) for result in results))


if __name__ == "__main__":
    sys.exit(main())
