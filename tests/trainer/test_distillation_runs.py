"""Runs with a teacher: nothing to learn from oneself, resumption, and teachers that are refused."""

import signal

import pytest
from hf_fixtures import make_hf_dir
from run_records import assert_same_run, lines_of
from tiny_runs import TRAIN, run, save_tiny_model, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.models import load_hf, save_hf

CONFIG = TRAIN | {
    "advantage": [{"name": "on_policy_distillation"}],
    "teacher": {"path": "teacher"},
    "loss": {"surrogate": {"name": "unclipped"}},
}


def train(directory, *more):
    return ["train", "--config", "distill.yaml", "--run.directory", directory, *more]


@pytest.fixture
def at_work(workspace, here):
    """The workspace with a teacher of other weights."""
    if not (workspace / "teacher").exists():
        save_tiny_model(workspace / "teacher")
        config, params = load_hf(workspace / "teacher")
        params["embed_tokens"]["embedding"] *= 3.0
        files = dict(tokenizer_dir=workspace / "tokenizer", dtype="float32")
        save_hf(workspace / "teacher_3", config, params, **files)
        (workspace / "teacher").rename(workspace / "equal")
        (workspace / "teacher_3").rename(workspace / "teacher")
        write_yaml(workspace / "distill.yaml", CONFIG)
    return workspace


def test_a_policy_learns_from_a_teacher_and_nothing_from_itself(at_work):
    assert main(train("whole")) == 0
    assert main(train("self", "--teacher.path", "equal", "--steps", "1")) == 0
    (first,) = lines_of(at_work / "self" / "metrics.jsonl")
    rows = lines_of(at_work / "whole" / "metrics.jsonl")
    assert first["grad_norm"] < 1e-3 < 1e-1 < rows[0]["grad_norm"]


@pytest.mark.slow
def test_a_run_with_a_teacher_that_is_killed_ends_as_one_that_never_was(at_work, capsys):
    moment = {"DIE_WHERE_IT_EXISTS": "killed/checkpoints/4.*tmp*"}
    assert run(at_work, *train("killed"), env=moment).returncode == -signal.SIGKILL
    assert main(train("killed")) == 0
    assert "resuming killed after step 2 of 6\n" in capsys.readouterr().err
    if not (at_work / "whole").exists():
        assert main(train("whole")) == 0
    assert_same_run(at_work / "whole", at_work / "killed")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--teacher.path", "stranger"],
            "teacher.path: must have the tokenizer of model, got anot",
        ),
        (["--teacher.path", "nowhere"], "teacher.path: must be "),
        (
            ["--teacher", "null"],
            "teacher: must be given for the advantage on_policy_distillation, ",
        ),
        (
            ["--advantage", "[{name: rloo}]"],
            "teacher: must be null without an advantage that reads",
        ),
        (
            ["--replay", "{name: pipo}"],
            "teacher: must be null with replay, whose buffer has no log",
        ),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_before_weights_are_read(
    at_work, capsys, options, line
):
    if not (at_work / "stranger").exists():
        make_hf_dir(at_work / "stranger", "qwen2", tokenizer=True)
    weights = at_work / "model" / "model.safetensors"
    hidden = weights.rename(weights.with_name("hidden"))
    try:
        assert main(train("new", *options)) == 2
    finally:
        hidden.rename(weights)
    found = capsys.readouterr().err
    assert found.startswith(f"entropy-rl train: {line}") and found.count("\n") == 1
    assert not (at_work / "new").exists()
