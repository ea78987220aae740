"""Runs as they lie on the disk, written by hand: what their files say is known exactly."""

import types

import numpy as np
import tokenizers
import yaml
from fake_evaluation import FakeTask
from transformers import PreTrainedTokenizerFast

from entropy_rl.evaluation import summarize
from entropy_rl.evaluation.samples import write_result
from entropy_rl.runs.jsonl import write_jsonl
from entropy_rl.tasks.task import Problem

# A model may write anything, and its user may have read it somewhere.
HOSTILE = (
    "</script><script>document.title='taken'</script><img/src=x/onerror=document.title='taken'>"
)
WORDS = ["<pad>", "<eos>", "<unk>", HOSTILE, "wait", "so", "1", "2", "3", "\u202eolleh", "{{7*7}}"]
GROUP, TEMPERATURE = 4, 1.0
CONFIG = {
    "seed": 0,
    "steps": 6,
    "model": {"path": "asset:countdown"},
    "task": {"name": "countdown", "args": {}, "train_split": "train"},
    "rollout": {"prompts": 2, "group_size": GROUP, "max_new_tokens": 8, "temperature": TEMPERATURE},
    "reward": {"correct": 1.0, "wrong": 0.0},
    "advantage": [
        {"name": "group_normalize"},
        {"name": "shape_by_entropy", "alpha": 0.4, "kappa": 2.0},
    ],
    "evaluation": {"split": "dev", "samples": 8, "max_new_tokens": 8, "temperature": TEMPERATURE},
}


def sample_row(draw, problem, sample, correct, **more):
    """A sample of random tokens, the last of which ends it."""
    tokens = [*draw.integers(3, len(WORDS), int(draw.integers(2, 7))).tolist(), 1]
    return more | {
        "problem": problem,
        "sample": sample,
        "prompt": f"problem {problem} {HOSTILE}",
        "right_answer": "1",
        "completion": " ".join(WORDS[token] for token in tokens[:-1]),
        "answer": "1" if correct else HOSTILE,
        "verdict": "correct" if correct else "wrong",
        "finish_reason": "eos",
        "length": len(tokens),
        "tokens": tokens,
        "log_probs": (-draw.exponential(1, len(tokens))).round(6).tolist(),
        "entropy": draw.exponential(0.5, len(tokens)).round(6).tolist(),
    }


def write_samples(directory, seed, gain=0.0, problems=6, samples=8):
    """An evaluation: samples that are right with 0.3 + gain, one more of each problem than none."""
    draw = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    rows = [
        sample_row(draw, problem, sample, sample == 1 or draw.random() < 0.3 + gain)
        for problem in range(problems)
        for sample in range(samples)
    ]
    write_jsonl(directory / "samples.jsonl", rows)
    asked = types.SimpleNamespace(
        problems=[Problem(i, "", "1") for i in range(problems)], left_out=0
    )
    write_result(directory, summarize(rows, FakeTask(), asked, samples))
    return rows


def write_tokenizer(directory):
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", eos_token="<eos>")
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(directory)


def write_run(directory, seed=0, config=None, evaluations=(0, 3, 6), gain=0.0):
    """A training run of six steps."""
    config = CONFIG if config is None else config
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    write_tokenizer(directory / "model")
    draw = np.random.default_rng(seed)
    names = ("correct", "reward", "entropy", "length", "bonus_share", "grad_norm")
    metrics = [
        {"step": s} | dict(zip(names, draw.random(6).tolist(), strict=True)) for s in range(1, 7)
    ]
    metrics[2]["grad_norm"] = None
    write_jsonl(directory / "metrics.jsonl", [row | {"clip_high": 0.0} for row in metrics])
    rows = [
        sample_row(draw, 10 + s, sample, sample == 0, step=s)
        for s in range(1, 7)
        for sample in range(2)
    ]
    for row in rows:
        count = len(row["tokens"])
        row |= {
            "reward": 1.0,
            "advantage_before": [0.5],
            "advantage_after": [0.5 + 0.01 * i for i in range(count)],
        }
    write_jsonl(directory / "samples.jsonl", rows)
    settings = yaml.safe_dump(config.get("evaluation"))
    for step in evaluations:
        write_samples(directory / "evaluations" / str(step), seed + step, gain)
        (directory / "evaluations" / str(step) / "config.yaml").write_text(settings)
    start = {
        "command": f"entropy-rl train {HOSTILE}",
        "time": "t",
        "commit": f"c{seed}",
        "versions": {"jax": "9"},
    }
    write_jsonl(directory / "starts.jsonl", [start | {"step": 0, "devices": "1 x cpu"}])
    return directory
