"""A run whose model has more vocabulary entries than its tokenizer has tokens."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from entropy_rl.cli.main import main
from entropy_rl.tasks.countdown import build_tokenizer

TOKENS = len(build_tokenizer())
ENTRIES = TOKENS + 16


@pytest.fixture
def padded(here, tmp_path):
    """A copy of the tiny model with likely rows that are no token."""
    import shutil

    directory = shutil.copytree(here / "model", tmp_path / "padded")
    file = directory / "model.safetensors"
    weights = load_file(file)
    table = weights["model.embed_tokens.weight"]
    rows = np.random.RandomState(0).standard_normal((ENTRIES - TOKENS, table.shape[1]))
    padded = np.concatenate([table, rows.astype(table.dtype)])
    save_file(weights | {"model.embed_tokens.weight": padded}, file)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": ENTRIES}))
    return directory


def train(padded, name: str, *more: str) -> list[dict]:
    run = str(padded.parent / name)
    command = ["train", "--config", "train.yaml", "--model.path", str(padded), "--steps", "1"]
    assert main([*command, "--run.directory", run, "--run.samples_per_step", "16", *more]) == 0
    lines = (padded.parent / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def tokens_of(directory) -> np.ndarray:
    rows = map(json.loads, (directory / "samples.jsonl").read_text().splitlines())
    return np.concatenate([row["tokens"] for row in rows])


@pytest.mark.slow
def test_ids_without_a_token_are_outside_of_a_run_on_any_mesh(padded):
    one = train(padded, "one", "--mesh.fsdp", "1")
    tokens = tokens_of(padded.parent / "one")
    assert len(tokens) > 100 and tokens.max() < TOKENS
    # The sampler and the trainer mean the same distribution, over the tokens alone.
    assert one[0]["logprob_diff"] < 1e-4
    assert one[0]["entropy"] < np.log(TOKENS)
    shards = ("--mesh.fsdp", "2", "--mesh.tensor", "2")
    on_mesh = train(padded, "mesh", *shards, "--model.extra_eos", "[<pad>]")
    assert tokens_of(padded.parent / "mesh").max() < TOKENS
    assert on_mesh[0]["logprob_diff"] < 1e-4
