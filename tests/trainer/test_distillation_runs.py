"""Runs with a teacher: nothing to learn from oneself, resumption, and teachers that are refused."""

import signal

import numpy as np
import pytest
from hf_fixtures import make_hf_dir
from run_records import assert_same_run, lines_of
from tiny_runs import TRAIN, run, save_tiny_model, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.models import load_hf, save_hf
from entropy_rl.report.reported_run import read_runs

CONFIG = TRAIN | {
    "advantage": [{"name": "on_policy_distillation"}],
    "teacher": {"path": "teacher"},
    "loss": {"surrogate": {"name": "unclipped"}},
}
IN_LOSS = TRAIN | {"advantage": None, "teacher": {"path": "teacher", "top_k": 8}}


def train(directory, *more, config="distill"):
    return ["train", "--config", f"{config}.yaml", "--run.directory", directory, *more]


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
        write_yaml(workspace / "in_loss.yaml", IN_LOSS)
    return workspace


def test_a_policy_learns_from_a_teacher_and_nothing_from_itself(at_work):
    assert main(train("whole")) == 0
    assert main(train("self", "--teacher.path", "equal", "--steps", "1")) == 0
    (first,) = lines_of(at_work / "self" / "metrics.jsonl")
    rows = lines_of(at_work / "whole" / "metrics.jsonl")
    assert first["grad_norm"] < 1e-3 < 1e-1 < rows[0]["grad_norm"]


def test_a_divergence_in_the_loss_falls_and_a_run_goes_on_to_the_bit(at_work):
    assert main(train("in-loss", config="in_loss")) == 0
    rows = lines_of(at_work / "in-loss" / "metrics.jsonl")
    assert all(row["advantage"] == 0 and row["loss"] > 0 for row in rows)
    assert rows[-1]["kl_teacher"] < rows[0]["kl_teacher"] / 2
    (reported,) = read_runs(["in-loss"])
    assert reported.method == "no policy gradient, KL to teacher in the loss: 1"
    for steps in ("2", "6"):
        assert main(train("resumed", "--steps", steps, config="in_loss")) == 0
    assert_same_run(at_work / "in-loss", at_work / "resumed")


@pytest.mark.slow
def test_a_run_on_four_devices_has_the_divergences_of_one(at_work):
    found = []
    for name, mesh in (("one", []), ("four", ["--mesh.fsdp", "2", "--mesh.tensor", "2"])):
        assert main(train(name, "--steps", "2", *mesh, config="in_loss")) == 0
        rows = lines_of(at_work / name / "metrics.jsonl")
        found.append([[row[n] for n in ("kl_teacher", "loss", "grad_norm")] for row in rows])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_repeated_with_the_teacher(at_work, capsys):
    assert main(train("bad", "--optimizer.learning_rate", "1.0e+38", config="in_loss")) == 1
    dump = min((at_work / "bad" / "nonfinite_updates").iterdir())
    capsys.readouterr()
    assert main(["debug-update", str(dump)]) == 0
    found = capsys.readouterr().out
    # In the forward pass of the policy everything is finite: there is no other loss.
    assert "the forward pass: finite\n" in found and "the gradient: not finite in\n" in found


@pytest.mark.slow
def test_a_new_adapter_has_the_divergence_of_its_base(at_work):
    once = ["--steps", "1", "--batching.mini_batch_prompts", "4", "--teacher.coef", "0.5"]
    adapter = ["--model.lora", "{rank: 4, alpha: 8}"]
    found = {}
    for name, more in (("base", []), ("adapter", adapter)):
        assert main(train(name, *once, *more, config="in_loss")) == 0
        (found[name],) = lines_of(at_work / name / "metrics.jsonl")
    for row in found.values():
        assert row["kl_teacher"] == pytest.approx(found["base"]["kl_teacher"], rel=1e-5)
        assert row["loss"] == pytest.approx(row["kl_teacher"] / 2, rel=1e-5)
        assert row["grad_norm"] > 1e-4


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
        (["--teacher.top_k", "0"], "teacher.top_k: must be null or >= 1, got 0"),
        (["--teacher.top_k", "999"], "teacher.top_k: must be null or <= "),
        (["--teacher.coef", "0.5"], "teacher.coef: must be absent without teacher.top_k"),
        (["--advantage", "null"], "advantage: must be a list with at least one transform without "),
        (
            ["--advantage", "null", "--teacher.top_k", "8"],
            "loss.surrogate: must be absent with advantage: null, which has no policy gradient",
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
