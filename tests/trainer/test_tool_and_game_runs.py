"""Runs on tools and games, killed and resumed: single tokens of a tiny model are moves or calls."""

import contextlib
import signal

import pytest
from hf_fixtures import save_tokenizer
from run_records import assert_same_run, lines_of
from tiny_runs import TRAIN, finish, save_tiny_model, start, write_yaml

from entropy_rl.cli.main import main

STEPS = 2
# A reward that differs between completions; its module ends the process where it is told to.
VOWELS = """
import luck


def vowels(completions):
    return [sum(text.count(vowel) for vowel in "aeiou") / (1 + len(text)) for text in completions]
"""
SCRIPT = '<tool_call>{{"name": "python", "arguments": {{"code": "{}"}}}}</tool_call>'
WORDS = ("", "I say ", "Now ", "Let me try ", "Perhaps ", "So ", "Next ", "My move is ")
CASES = {
    "tools": (
        {
            "task": {"name": "arithmetic", "args": {"counts": {"train": 8, "test": 3}}},
            "tools": {"python": {"cpu_s": 1}},
            "describe": "system",
        },
        [
            SCRIPT.format(code)
            for i in range(100)
            for code in (f"print({i} * 7)", "import random; print(random.random())", f"{i} / 0")
        ],
    ),
    "textarena": (
        {"games": {"GuessTheNumber-v0": None, "Mastermind-v0": None}, "train": 8, "test": 4},
        [f"{word}[{n}]" for word in WORDS for n in (*range(1, 21), "1 2 3 4", "4 3 2 1")],
    ),
}


def save_model(directory, tokens):
    """Write a random model of a tokenizer with more tokens."""
    from transformers import AutoTokenizer

    save_tokenizer(directory.with_name("bytes"))
    tokenizer = AutoTokenizer.from_pretrained(directory.with_name("bytes"))
    tokenizer.add_tokens(tokens)
    save_tiny_model(directory, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_goes_on_to_the_bit(name, workspace, here):
    if name == "textarena":
        pytest.importorskip("textarena", reason="needs the extra environments")
    args, tokens = CASES[name]
    save_model(workspace / f"{name}_model", tokens)
    (workspace / "vowels.py").write_text(VOWELS)
    changes = {
        "model": {"path": f"{name}_model"},
        "task": {
            "name": name,
            "args": args,
            "episodes": {"max_turns": 3, "max_turn_tokens": 4, "workers": 1},
        },
        "rollout": {
            "prompts": 2,
            "group_size": 4,
            "max_prompt_tokens": 1024,
            "max_new_tokens": 768,
        },
        "batching": {"mini_batch_prompts": 2, "max_tokens_per_micro_batch": 4096},
        "rewards": [{"name": "graded"}, {"name": "vowels:vowels"}],
        "steps": STEPS,
        "run": {"directory": "run", "checkpoint_every": 1},
        "decoding": {"chunk_steps": 4},
    }
    write_yaml(workspace / f"{name}.yaml", TRAIN | changes)

    def train(directory):
        return ["train", "--config", f"{name}.yaml", "--run.directory", directory]

    with contextlib.chdir(workspace):
        assert main(train(f"{name}_whole")) == 0
        rows = lines_of(workspace / f"{name}_whole" / "samples.jsonl")
        said = [text for row in rows for _, text in row.get("observations", [])]
        metrics = lines_of(workspace / f"{name}_whole" / "metrics.jsonl")
        assert all(row["grad_norm"] > 0 for row in metrics)
        if name == "tools":
            assert sum("ZeroDivisionError" in text for text in said) > 1
            assert all(row["part/tool_calls"] > 0 == row["part/tool_errors"] for row in metrics)
        else:
            assert any("The target number is" in text for text in said)
            assert any("black peg" in text for text in said)
        moment = {"DIE_WHERE_IT_EXISTS": f"{name}_killed/checkpoints/{STEPS}.*tmp*"}
        killed = finish(start(workspace, *train(f"{name}_killed"), env=moment), timeout=900)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert main(train(f"{name}_killed")) == 0
        assert_same_run(workspace / f"{name}_killed", workspace / f"{name}_whole", STEPS)
