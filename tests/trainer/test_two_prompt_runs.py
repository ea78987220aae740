"""Runs with two prompts for each problem: what Policy Split reads, on any mesh, and resumed."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_records import assert_same_run, lines_of
from tiny_runs import TRAIN, save_tiny_model, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.config.common import ModelConfig
from entropy_rl.experience.encoding import encode_prompt
from entropy_rl.runs.load_model import load_model
from entropy_rl.tasks import Problem

CHAT = """
import dataclasses

from luck import Luck


class Chat(Luck):
    def problems(self, split):
        return [dataclasses.replace(p, chat=True) for p in super().problems(split)]
"""
STEPS, G = 4, 4
SPLIT = {"name": "policy_split", "alpha": 0.6, "eta_high": 0.5, "eta_normal": 0.1}
CONFIG = TRAIN | {
    "model": {"path": "chat_model"},
    "task": {
        "name": "two_prompts",
        "args": {
            "task": {"name": "chat:Chat", "args": TRAIN["task"]["args"]},
            "system": "Make a box.",
        },
    },
    "rollout": {"prompts": 4, "group_size": G, "max_prompt_tokens": 96, "max_new_tokens": 12},
    "advantage": [{"name": "group_normalize"}, SPLIT],
    "batching": {"mini_batch_prompts": 2, "max_tokens_per_micro_batch": 512},
    "steps": STEPS,
    "run": TRAIN["run"] | {"samples_per_step": 99},
}


def train(directory, *more):
    return ["train", "--config", "split.yaml", "--run.directory", directory, *more]


@pytest.fixture(scope="module")
def whole(workspace, chat_tokenizer_directory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer_directory)
    save_tiny_model(workspace / "chat_model", tokenizer)
    (workspace / "chat.py").write_text(CHAT)
    write_yaml(workspace / "split.yaml", CONFIG)
    with contextlib.chdir(workspace):
        assert main(train("whole")) == 0
    return workspace / "whole"


def test_the_two_prompts_of_a_problem_are_two_groups_of_a_mini_batch(whole):
    rows = lines_of(whole / "samples.jsonl")
    assert len(rows) == STEPS * 4 * G
    for start in range(0, len(rows), 2 * G):
        normal, high = rows[start : start + G], rows[start + G : start + 2 * G]
        assert {r["source"] for r in normal} == {"normal"} and "messages" not in normal[0]
        assert {r["source"] for r in high} == {"high_entropy"}
        assert high[0]["messages"] == [{"role": "system", "content": "Make a box."}]
        assert {r["prompt"] for r in normal + high} == {normal[0]["prompt"]}
        # They draw from keys of their own.
        assert [r["tokens"] for r in normal] != [r["tokens"] for r in high]
    metrics = lines_of(whole / "metrics.jsonl")
    assert all({"correct/normal", "correct/high_entropy"} <= set(row) for row in metrics)


def log_probs_under_other_prompt(workspace, rows):
    """Of each completion, by a forward pass over the other prompt and the completion alone."""
    model = load_model(ModelConfig(str(workspace / "chat_model")), None, jax.random.key(0))
    found = []
    for row in rows:
        system = () if "messages" in row else (("system", "Make a box."),)
        other = Problem(0, row["prompt"], "", chat=True, messages=system)
        prompt = encode_prompt(other, model.tokenizer)
        ids = jnp.array([prompt + row["tokens"]])
        hidden = model.policy.apply(model.params, ids)[0]
        logits = hidden @ model.policy.head(model.params).T
        all_log_probs = jax.nn.log_softmax(logits[len(prompt) - 1 : -1])
        found.append(
            np.take_along_axis(np.asarray(all_log_probs), ids[0, len(prompt) :, None], 1)[:, 0]
        )
    return found


def test_the_bonus_is_that_of_log_probs_under_the_other_prompt(whole, workspace):
    # Those of the first mini-batch of the first step, when the policy is the one it starts from.
    rows = lines_of(whole / "samples.jsonl")[: 2 * G]
    others = log_probs_under_other_prompt(workspace, rows)
    gap = [np.abs(o - r["log_probs"]).max() for o, r in zip(others, rows, strict=True)]
    assert min(gap) > 1e-3  # or the two prompts could not be told apart
    for group, eta in ((slice(0, G), -0.1), (slice(G, 2 * G), 0.5)):
        rewards = np.array([1.0 if r["verdict"] == "correct" else -1.0 for r in rows[group]])
        std = rewards.std(ddof=1)
        base = (rewards - rewards.mean()) / (std + 1e-6 if std else 1)
        own = [np.array(r["log_probs"]) for r in rows[group]]
        mixed = [-0.6 * a - 0.4 * b for a, b in zip(own, others[group], strict=True)]
        tokens = np.concatenate(mixed)
        for row, values, advantage in zip(rows[group], mixed, base, strict=True):
            wanted = advantage + eta * (values - tokens.mean()) / (tokens.std(ddof=1) + 1e-6)
            np.testing.assert_allclose(row["advantage_before"], wanted, atol=2e-4)


def test_a_resumed_run_is_the_same_to_the_bit(whole, workspace, here):
    for steps in ("2", "4"):
        assert main(train("resumed", "--steps", steps)) == 0
    assert_same_run(workspace / "resumed", whole, STEPS)


@pytest.mark.slow
def test_eight_devices_and_small_micro_batches_make_the_same_bonus(whole, workspace, here):
    more = ["--steps", "1", "--run.checkpoint_every", "1", "--batching.max_tokens_per_micro_batch"]
    assert main(train("mesh", *more, "110", "--mesh.fsdp", "2", "--mesh.data", "1")) == 0
    rows = lines_of(workspace / "mesh" / "samples.jsonl")
    first = [row for row in lines_of(whole / "samples.jsonl") if row["step"] == 1]
    for row, other in zip(rows, first, strict=True):
        assert row["tokens"] == other["tokens"]
        if row["advantage_before"]:
            before = other["advantage_before"]
            np.testing.assert_allclose(row["advantage_before"], before, atol=2e-4)


def test_what_would_separate_the_two_prompts_is_refused(workspace, whole, refused):
    line = refused(*train("no", "--rollout.dynamic_sampling.max_rounds", "3"))
    assert line.startswith("advantage[1]: must be used without dynamic sampling")
    line = refused(*train("no", "--curriculum", json.dumps({"name": "replay_failed"})))
    assert line.startswith("curriculum: must be null with the task two_prompts, which has 2")
    task = json.dumps(CONFIG["task"]["args"]["task"])
    line = refused(*train("no", "--task", task))
    assert line.startswith("advantage[1]: must be used with two prompts for each problem")
    line = refused(*train("no", "--batching.mini_batch_prompts", "1"))
    assert line.startswith("batching.mini_batch_prompts: must be a multiple of the number of hosts")
    line = refused(*train("no", "--advantage.1.high", "hot"))
    assert line.startswith("advantage[1]: must name a source of some of the problems")
