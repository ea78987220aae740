"""Cost of whole LoRA runs trained together beside the same runs one after the other.

    python benchmarks/stacked_runs.py --output stacked_runs.json

SmolLM2-135M (needs the extra `smollm2`) on `configs/arithmetic_grpo.yaml` with a LoRA adapter, one
run for each seed: "alone" is `entropy-rl train` for each of them, one after the other, and
"stacked" one `entropy-rl train-stacked`. Each is a process with all that a run has: start,
compilation, sampling, verdicts, updates and checkpoints. They share a compilation cache that is
empty before the first run of either kind, so that each kind compiles once. The measure is
CPU-seconds of the processes; memory is the largest resident set of one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from entropy_rl.cli.parse import recipe_arguments
from entropy_rl.config.train import TrainConfig

CONFIG = "configs/arithmetic_grpo.yaml"
ROOT = Path(__file__).parents[1]


def settings(args: argparse.Namespace, seed: int, directory: Path) -> dict[str, Any]:
    """The overrides of one run."""
    return {
        "seed": seed,
        "steps": args.steps,
        "model.lora": {"rank": args.rank, "alpha": float(args.rank)},
        "optimizer.learning_rate": 1e-4,
        "rollout.prompts": args.prompts,
        "batching.mini_batch_prompts": args.prompts,
        "run.directory": str(directory / str(seed)),
        "run.max_to_keep": 2,
    }


def run(arguments: list[str], cache: Path) -> dict[str, float]:
    """Run a command; its CPU-seconds, seconds, and peak memory in MiB."""
    variables = {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "entropy_rl", *arguments],
        cwd=ROOT, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    errors = child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"entropy-rl {arguments[0]}: {errors.strip().splitlines()[-1][:300]}")
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "s": time.perf_counter() - start,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def measure(args: argparse.Namespace, kind: str, cache: Path) -> dict[str, float]:
    """Run all seeds in one way."""
    directory = Path(tempfile.mkdtemp(prefix="stacked_runs."))
    runs = [settings(args, seed, directory) for seed in range(args.seeds)]
    if kind == "stacked":
        plain = [{"config": CONFIG, "overrides": overrides} for overrides in runs]
        found = [run(["train-stacked", "--runs", json.dumps(plain)], cache)]
    else:
        commands = (recipe_arguments(TrainConfig, CONFIG, overrides) for overrides in runs)
        found = [run(["train", *command], cache) for command in commands]
    shutil.rmtree(directory)
    total = {name: sum(one[name] for one in found) for name in ("cpu_s", "s")}
    return total | {"peak_mib": max(one["peak_mib"] for one in found)}


def table(result: dict[str, Any]) -> str:
    """The first round, which compiles, and medians of the others with the range of their ratio."""
    lines = [
        "| | alone, CPU-s | stacked, CPU-s | ratio [least, most] | peak alone, MiB | stacked |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rounds = result["rounds"]
    for name, some in (("first, with compilation", rounds[:1]), ("later", rounds[1:])):
        if not some:
            continue
        ratios = sorted(one["stacked"]["cpu_s"] / one["alone"]["cpu_s"] for one in some)
        of = {
            (kind, what): statistics.median(one[kind][what] for one in some)
            for kind in ("alone", "stacked")
            for what in ("cpu_s", "peak_mib")
        }
        lines.append(
            f"| {name} | {of['alone', 'cpu_s']:.0f} | {of['stacked', 'cpu_s']:.0f} "
            f"| {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] "
            f"| {of['alone', 'peak_mib']:.0f} | {of['stacked', 'peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=8, help="runs, one for each; default: 8")
    add("--steps", type=int, default=4, help="of a run; default: 4")
    add("--prompts", type=int, default=1, help="of a step, 8 samples each; default: 1")
    add("--rank", type=int, default=16, help="of the adapters; default: 16")
    add("--rounds", type=int, default=2, help="the first one compiles; default: 2")
    default = "a JSON file for every single run; default: stacked_runs.json"
    add("--output", default="stacked_runs.json", help=default)
    add("--show", help="run nothing; print the table of this JSON file")
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(Path(args.show).read_text())))
        return
    rounds: list[dict[str, Any]] = []
    caches = {kind: Path(tempfile.mkdtemp(prefix="cache.")) for kind in ("alone", "stacked")}
    for number in range(args.rounds):
        order = ("alone", "stacked") if number % 2 else ("stacked", "alone")
        found = {}
        for kind in order:
            found[kind] = measure(args, kind, caches[kind])
            print(f"round {number + 1}/{args.rounds}, {kind}: {found[kind]}", file=sys.stderr)
        rounds.append(found)
        result = {"settings": vars(args), "rounds": rounds}
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    for cache in caches.values():
        shutil.rmtree(cache)
    print(table({"rounds": rounds}))


if __name__ == "__main__":
    main()
