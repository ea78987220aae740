"""Runs that take seconds: a tiny random model, a task that rewards luck, and the command line
around them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import yaml
from conftest import CACHE

from entropy_rl.models import DecoderConfig, make_policy, save_hf
from entropy_rl.tasks.countdown import build_tokenizer

ROOT = Path(__file__).parents[1]

# A task of a user's own. Half of all completions are right, so that there is something to learn
# from. It can also end its process, at a moment that the environment names.
LUCK = '''
import glob
import os
import signal
import threading
import time
import zlib
from entropy_rl.tasks.countdown import Countdown
from entropy_rl.tasks import Verdict


def die_where_it_exists(pattern):
    while not glob.glob(pattern):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


if "DIE_WHERE_IT_EXISTS" in os.environ:
    pattern = os.environ["DIE_WHERE_IT_EXISTS"]
    threading.Thread(target=die_where_it_exists, args=(pattern,), daemon=True).start()


class Luck(Countdown):
    """The problems of Countdown; the verdict is a hash of the completion."""

    calls = 0

    def judge(self, problems, completions):
        self.calls += 1
        name, _, call = os.environ.get("SIGNAL_AT_CALL", "").partition(":")
        if name and self.calls == int(call):
            os.kill(os.getpid(), signal.Signals[name])
        coins = [zlib.crc32(text.encode()) % 2 for text in completions]
        return [Verdict.CORRECT if coin else Verdict.WRONG for coin in coins]


class Unlucky(Countdown):
    """Fails with an error of Python."""

    def __init__(self, number: str):
        int(number)
'''

TRAIN = {
    "seed": 0,
    "steps": 6,
    "model": {"path": "model"},
    "task": {"name": "luck:Luck", "args": {"counts": {"train": 16, "test": 4}}},
    "rollout": {"prompts": 4, "group_size": 4, "max_prompt_tokens": 16, "max_new_tokens": 12},
    "advantage": [
        {"name": "group_normalize"},
        {"name": "shape_by_entropy", "alpha": 0.4, "kappa": 2.0},
    ],
    "batching": {"mini_batch_prompts": 2, "max_tokens_per_micro_batch": 64},
    "optimizer": {"learning_rate": 0.01},
    "run": {"directory": "run", "checkpoint_every": 2},
    "mesh": {"fsdp": 1},
}
SFT = {
    "seed": 0,
    "steps": 6,
    "batch_size": 4,
    "length_buckets": [176],
    "architecture": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
    },
    "task": {"name": "luck:Luck"},
    "optimizer": {"learning_rate": 0.01},
    "run": {"directory": "warm", "checkpoint_every": 2},
    "mesh": {"fsdp": 1},
}
EVALUATION = {"split": "test", "samples": 2, "max_new_tokens": 8, "problems": 3}


def save_tiny_model(directory: Path, tokenizer: Any = None) -> Path:
    """Writes a Hugging Face directory of a random one-layer decoder.

    Args:
      directory: Where to.
      tokenizer: Its tokenizer; None for Countdown's.
    """
    tokenizer_dir = directory.with_name("tokenizer")
    if tokenizer is None:
        tokenizer = build_tokenizer()
    else:
        tokenizer_dir = directory.with_name(f"{directory.name}_tokenizer")
    tokenizer.save_pretrained(tokenizer_dir)
    config = DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        rope_theta=1e4,
        norm_eps=1e-6,
        qkv_bias=False,
        qk_norm=True,
        tie_embeddings=True,
        initializer_range=0.05,
    )
    params = make_policy(config).init(jax.random.key(0))
    save_hf(directory, config, params, tokenizer_dir=tokenizer_dir, dtype="float32")
    return directory


def make_workspace(directory: Path) -> Path:
    """A user's working directory: model/, luck.py, train.yaml, sft.yaml."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tiny_model(directory / "model")
    (directory / "luck.py").write_text(LUCK)
    write_yaml(directory / "train.yaml", TRAIN)
    write_yaml(directory / "sft.yaml", SFT)
    return directory


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    """Writes a config."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def start(workspace: Path, *arguments: str, **options: Any) -> subprocess.Popen:
    """Starts `entropy-rl ARGUMENTS` as a process of its own in a working directory."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))
    }
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "entropy_rl.cli.main", *arguments],
        cwd=workspace,
        env=environment | options.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen, timeout: float = 120) -> subprocess.CompletedProcess:
    """Waits for a process of `start`."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(workspace: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """`entropy-rl ARGUMENTS` from start to end."""
    return finish(start(workspace, *arguments, **options))


def run_two(
    workspace: Path, *arguments: str, **environment_of_second: str
) -> list[subprocess.CompletedProcess]:
    """The same command in two processes with four devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for i, more in enumerate(({}, environment_of_second)):
        env = {"ENTROPY_RL_DISTRIBUTED": f"{address},2,{i}", "JAX_NUM_CPU_DEVICES": "4"} | more
        processes.append(start(workspace, *arguments, env=env))
    return [finish(process) for process in processes]
