"""Makes the runs of the first edition that `tests/runs/test_first_edition.py` reads and resumes.

    git worktree add ../first 'HEAD^{/What is said twice is said once}'
    PYTHONPATH=../first .venv/bin/python tests/golden/first_edition/make.py

Writes, beside this file:

    runs.tar.xz    critic/ and replay/, two runs of 2 steps with a checkpoint, samples and
                   evaluations; spoil.py, which the first one uses; evaluated/, what `evaluate`
                   wrote for replay/
    expected.json  by the first edition itself: the lines of metrics.jsonl when each run is resumed
                   to step 4 (without times), and what its verb `replay` prints for an update that
                   was not applied; and the machine, as the last bits of a float depend on it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from run_records import machine  # noqa: E402
from tiny_runs import LUCK, save_tiny_model  # noqa: E402

# NaN for a mini-batch whose first advantage is positive: such an update is not applied.
SPOIL = """
import jax.numpy as jnp


def spoil():
    return lambda advantages, stats: jnp.where(advantages[:1, :1] > 0, jnp.nan, advantages)
"""
COMMON = {
    "seed": 0,
    "steps": 2,
    "model": {"path": "model"},
    "task": {"name": "luck:Luck", "args": {"counts": {"train": 16, "test": 4}}},
    "rollout": {"prompts": 4, "group_size": 4, "max_prompt_tokens": 16, "max_new_tokens": 12},
    "batching": {"prompts_per_update": 2, "tokens_per_micro_batch": 64, "max_bad_updates": 9},
    "optimizer": {"learning_rate": 0.01},
    "evaluation": {"split": "test", "samples": 2, "max_new_tokens": 8, "problems": 3},
    "mesh": {"fsdp": 1},
}
RUN = {"checkpoint_every": 2, "keep_checkpoints": 1, "samples_per_step": 4}
RUNS = {
    "critic": COMMON
    | {
        "advantage": [
            {"name": "gae", "lam": 0.9},
            {"name": "shape_by_entropy", "alpha": 0.4, "kappa": 2.0},
            {"name": "spoil:spoil"},
        ],
        "run": RUN | {"directory": "critic"},
        "loss": {
            "selection": [{"name": "forking_tokens", "fraction": 0.5}],
            "entropy_coef": {
                "name": "adaptive_entropy",
                "target": 5.0,
                "delta": 0.01,
                "maximum": 1.0,
            },
        },
        "schedule": {"kind": "refill", "slots": 8, "chunk_steps": 4},
        "critic": {"learning_rate": 0.01, "tokens_per_micro_batch": 64},
    },
    "replay": COMMON
    | {
        "rollout": COMMON["rollout"] | {"dynamic_sampling": {"max_rounds": 3}},
        "advantage": [{"name": "leave_one_out"}],
        "run": RUN | {"directory": "replay"},
        "revisit": {"name": "advantage_replay", "rollouts": 1, "every": 2, "above": 0.1},
    },
}
LEFT_OUT = ("curves.png", "pass_at_k.png", "pass_at_k.svg", "tensorboard")


def rl(workspace: Path, *arguments: str) -> str:
    """Runs `entropy-rl` of the first edition as the tests run it; returns what it prints."""
    command = [sys.executable, "-m", "entropy_rl.cli", *arguments]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    return subprocess.run(
        command, cwd=workspace, env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def main() -> None:
    """Trains, evaluates, packs, resumes."""
    expected = {"machine": machine(), "resumed": {}}
    with tempfile.TemporaryDirectory() as directory:
        workspace = Path(directory)
        save_tiny_model(workspace / "model")
        (workspace / "luck.py").write_text(LUCK)
        (workspace / "spoil.py").write_text(SPOIL)
        for name, config in RUNS.items():
            (workspace / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            rl(workspace, "train", "--config", f"{name}.yaml")
        evaluation = json.dumps(RUNS["replay"]["evaluation"])
        settings = ["--task", json.dumps(COMMON["task"]), "--max_prompt_tokens", "16"]
        settings += ["--evaluation", evaluation, "--seed", "1", "--schedule.kind", "shrink"]
        rl(workspace, "evaluate", "--model.path", "replay", "--output", "evaluated", *settings)
        dump = min((workspace / "critic" / "bad_updates").iterdir())
        expected["looked_into"] = rl(workspace, "replay", str(dump.relative_to(workspace)))
        with tarfile.open(HERE / "runs.tar.xz", "w:xz") as archive:
            for name in (*RUNS, "evaluated", "spoil.py"):
                archive.add(
                    workspace / name,
                    name,
                    filter=lambda info: None if info.name.endswith(LEFT_OUT) else info,
                )
        for name in RUNS:
            rl(workspace, "train", "--config", f"{name}.yaml", "--steps", "4")
            rows = map(json.loads, (workspace / name / "metrics.jsonl").read_text().splitlines())
            expected["resumed"][name] = [
                {key: value for key, value in row.items() if not key.startswith("time/")}
                for row in rows
            ]
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
