"""SFT and DPO runs on conversations: from the file to a model, resumed to the bit."""

import contextlib
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from hf_fixtures import save_tokenizer
from math_files import write_jsonl
from run_records import assert_same_run, lines_of, state_of
from tiny_runs import LUCK, ROOT, run, save_tiny_model, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.plan import PlanSFTConfig
from entropy_rl.config.sft import SFTConfig
from entropy_rl.planning.devices import virtual_devices
from entropy_rl.planning.shapes import find_policy
from entropy_rl.planning.supervised import abstract_setup, resident_bytes
from entropy_rl.runs.jsonl import read_jsonl
from entropy_rl.runs.load_model import load_model
from entropy_rl.trainer.chat_setup import set_up_chats

STEPS = 6
SFT = {
    "seed": 0,
    "steps": STEPS,
    "batch_size": 4,
    "model": {"path": "talker"},
    "data": {"train": "chats.jsonl", "max_tokens": 96, "held_out": 3},
    "batching": {"max_tokens_per_micro_batch": 128},
    "optimizer": {"learning_rate": 0.01},
    "run": {"directory": "sft", "checkpoint_every": 2, "evaluate_every": 3},
    "log_every": 1,
    "mesh": {"fsdp": 1},
}
DPO = SFT | {
    "data": {"train": "pairs.jsonl", "max_tokens": 96, "held_out": 3},
    "loss": {"name": "dpo", "beta": 0.1},
}
LORA = {"path": "talker", "lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "down_proj"]}}


@pytest.fixture(scope="module")
def at_work(workspace):
    """The workspace with a model that has a chat template, conversations and pairs."""
    from transformers import AutoTokenizer

    save_tokenizer(workspace / "chatml")
    save_tiny_model(workspace / "talker", AutoTokenizer.from_pretrained(workspace / "chatml"))
    rng = np.random.default_rng(0)
    chats, pairs = [], []
    for a, b in rng.integers(1, 50, (16, 2)).tolist():
        asked = {"role": "user", "content": f"{a} + {b}?"}
        said = {"role": "assistant", "content": f"The answer is {a + b}."}
        chats.append({"messages": [asked, said, *([asked, said] if a % 2 else [])]})
        pairs.append({"prompt": [asked], "chosen": [said], "rejected": f"It is {a - b}, I think."})
    write_jsonl(workspace / "chats.jsonl", chats)
    write_jsonl(workspace / "pairs.jsonl", pairs)
    (workspace / "watched").mkdir()
    (workspace / "watched" / "sitecustomize.py").write_text("import luck")  # which ends the process
    (workspace / "watched" / "luck.py").write_text(LUCK)
    write_yaml(workspace / "chats.yaml", SFT)
    write_yaml(workspace / "pairs.yaml", DPO)
    write_yaml(workspace / "lora.yaml", DPO | {"model": LORA})
    with contextlib.chdir(workspace):
        for config in ("chats", "pairs", "lora"):
            assert main(sft(config, f"whole_{config}")) == 0
    return workspace


def sft(config, directory, *more):
    return ["sft", "--config", f"{config}.yaml", "--run.directory", directory, *more]


def test_a_run_on_chats_lowers_the_loss_of_what_was_held_out(at_work):
    rows = lines_of(at_work / "whole_chats" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["loss"] > rows[-1]["loss"]
    timed = read_jsonl(at_work / "whole_chats" / "metrics.jsonl")
    assert all(0 < row["time/micro_batch_fill"] <= 1 for row in timed)
    validated = [row for row in rows if "validation/loss" in row]
    assert [row["step"] for row in validated] == [3, 6]
    assert validated[1]["validation/loss"] < validated[0]["validation/loss"]
    assert rows[-1]["epoch"] == 6 * 4 / 13
    # A cosine decay to 0.02 by default, as for demonstrations.
    assert rows[0]["learning_rate"] == pytest.approx(0.01)
    assert rows[-1]["learning_rate"] < 0.002


@pytest.mark.parametrize("config", ["pairs", "lora"])
def test_dpo_begins_at_the_reference_and_moves_rewards_apart(at_work, config):
    rows = lines_of(at_work / f"whole_{config}" / "metrics.jsonl")
    # With LoRA the reference is the base: B = 0.
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert rows[0]["reward_margin"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["reward_margin"] > 0
    assert rows[-1]["validation/reward_accuracy"] == 1
    assert rows[-1]["validation/loss"] < np.log(2)


@pytest.mark.parametrize(
    "config", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("chats", "pairs")), "lora"]
)
def test_a_run_that_is_killed_ends_as_one_that_never_was(at_work, here, capsys, config):
    environment = {
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
        "DIE_WHERE_IT_EXISTS": f"killed_{config}/checkpoints/4.*tmp*",
        "PYTHONPATH": f"{ROOT}:{at_work / 'watched'}",
    }
    result = run(at_work, *sft(config, f"killed_{config}"), env=environment)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert main(sft(config, f"killed_{config}")) == 0
    assert f"resuming killed_{config} after step 2 of 6\n" in capsys.readouterr().err
    assert_same_run(at_work / f"whole_{config}", at_work / f"killed_{config}", least=10)


@pytest.mark.parametrize("config", ["chats", "pairs", "lora"])
def test_the_planned_programs_are_those_that_run(at_work, here, config):
    """Update and validation, operation by operation, and the bytes of all that is kept."""
    given = ["--config", f"{config}.yaml", "--run.directory", "planned"]
    setup = set_up_chats(parse_config(SFTConfig, "sft", given))
    batch = setup.put(setup.batch(0))
    target = ["--devices", "1", "--data.max_tokens", str(batch.ids.shape[1])]
    planned = parse_config(PlanSFTConfig, "plan-sft", [*given, *target])
    abstract, rows = abstract_setup(planned, find_policy(planned), virtual_devices(1, None))
    for of_plan, of_run in (
        (abstract.update.lower(abstract.start, rows), setup.update.lower(setup.start, batch)),
        (
            abstract.validation_sums.lower(abstract.start.params, rows),
            setup.validation_sums.lower(setup.start.params, batch),
        ),
    ):
        # Arguments that are no arrays yet have other annotations.
        lines = [
            [
                line
                for line in lowered.as_text().splitlines()
                if "@main(" not in line and "sdy.mesh" not in line
            ]
            for lowered in (of_plan, of_run)
        ]
        assert lines[0] == lines[1] and len(lines[0]) > 100
    kept = resident_bytes(abstract, rows)
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    assert kept["optimizer state"] == size(setup.start.opt_state)
    assert kept["rows of a step"] == kept["validation rows"] == size(batch)
    assert kept["parameters"] == size(setup.model.params_with(setup.start.params))
    assert (
        kept.get("reference parameters")
        == {
            "chats": None,
            "pairs": size(setup.model.params),
            "lora": size(setup.start.params),  # and the base, which is that of the adapter
        }[config]
    )


def test_a_run_is_exported_and_loaded_like_any_other(at_work, here):
    model = load_model("whole_chats")
    jax.tree.map(
        np.testing.assert_array_equal, model.params, state_of(here / "whole_chats")["params"]
    )
    for run_, output, form in (("chats", "hf", "merged"), ("lora", "peft", "peft")):
        arguments = ["export", "--model", f"whole_{run_}", "--output", output, "--format", form]
        assert main([*arguments, "--dtype", "float32"]) == 0
    jax.tree.map(np.testing.assert_array_equal, load_model("hf").params, model.params)
    assert json.loads((here / "peft" / "adapter_config.json").read_text())["r"] == 4


def test_training_stops_where_the_validation_loss_no_longer_falls(at_work, here, capsys):
    # With so high a rate the loss rises from some step on.
    more = ["--patience", "2", "--run.evaluate_every", "1", "--optimizer.learning_rate", "0.3"]
    more += ["--steps", "40", "--run.checkpoint_every", "1", "--run.max_to_keep", "40"]
    assert main(sft("chats", "patient", *more)) == 0
    rows = lines_of(here / "patient" / "metrics.jsonl")
    lowest = int(np.argmin([row["validation/loss"] for row in rows]))
    assert len(rows) == lowest + 3 < 40
    line = f"stopped after step {len(rows)}: no lower validation loss in 2 validations; the model "
    assert line in capsys.readouterr().err
    # The same command again changes nothing.
    assert main(sft("chats", "patient", *more)) == 0
    assert f"stopped after step {len(rows)} already, by patience" in capsys.readouterr().err
    assert lines_of(here / "patient" / "metrics.jsonl") == rows
    # Validations at other steps would stop it elsewhere.
    capsys.readouterr()
    assert main(sft("chats", "patient", *more, "--run.evaluate_every", "2")) == 2
    assert "another run (its run.evaluate_every is 1, here it is 2)" in capsys.readouterr().err
    # best/ is the model of the lowest loss, and no other.
    best, last = load_model("patient/best").params, load_model("patient").params
    of_step = state_of(here / "patient", lowest + 1)["params"]
    jax.tree.map(np.testing.assert_array_equal, best, of_step)
    assert (best["norm"]["scale"] != last["norm"]["scale"]).any()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--data.train", "nowhere.jsonl"], "data.train: must be a file, a directory or a pattern"),
        (["--data.held_out", "16"], "data.held_out: must be less than 16, the rows of data.train"),
        (["--data.validation", "chats.jsonl"], "data.held_out: must be 0 with data.validation, g"),
        (["--data.max_tokens", "5"], "data.train: must have a row that can be used, got 16; chats"),
        (["--batching.max_tokens_per_micro_batch", "16"], "batching.max_tokens_per_micro_batch: m"),
        (
            ["--batching.max_tokens_per_micro_batch", "null"],
            "batching.max_tokens_per_micro_batch: must be given with data",
        ),
        (["--batch_size", "3", "--mesh.fsdp", "2"], "batch_size: must be a multiple of 2, so that"),
        (["--model", "null"], "model: must be given with data, got None"),
        (["--data", "null"], "task: must be given with task, or data instead, got None"),
        (["--task.name", "countdown"], "task: must be null with data, got "),
        (["--loss.name", "dpo"], "chats.jsonl:1: must have 'prompt', 'chosen' and 'rejected', got"),
        (["--loss.name", "dop"], "loss.name: must be one of "),
        (["--patience", "2", "--run.evaluate_every", "0"], "patience: must be null without run.ev"),
        (
            ["--patience", "2", "--run.evaluate_every", "4", "--steps", "6"],
            "steps: must be a multiple of run.evaluate_every (4) with patience, got 6",
        ),
        (["--data.held_out", "0"], "run.evaluate_every: must be 0 without data.validation or data"),
        (["--model.path", "model"], "chats.jsonl:1: model: must have a chat template for messages"),
    ],
)
def test_bad_settings_are_refused_before_the_weights_are_read(at_work, here, capsys, options, line):
    weights = here / "talker" / "model.safetensors"
    hidden = weights.rename(weights.with_name("hidden"))
    try:
        assert main(sft("chats", "new", *options)) == 2
    finally:
        hidden.rename(weights)
    found = capsys.readouterr().err
    assert found.startswith("entropy-rl sft: ") and found.count("\n") == 1
    assert line in found and not (here / "new").exists()


def test_other_conversations_are_refused_on_resumption(at_work, here, capsys):
    shutil.copytree("whole_chats", "again")
    rows = (here / "chats.jsonl").read_text()
    (here / "chats.jsonl").write_text(rows.replace("The answer", "A result", 3))
    try:
        assert main(sft("chats", "again")) == 2
    finally:
        (here / "chats.jsonl").write_text(rows)
    assert "got other conversations (data." in capsys.readouterr().err


def test_a_run_without_a_task_is_evaluated_on_one_that_is_named(at_work, here, capsys):
    arguments = ["evaluate", "--model.path", "whole_chats", "--seed", "0", "--output", "evaluated"]
    arguments += ["--evaluation.split", "test", "--evaluation.samples", "1"]
    assert main([*arguments, "--evaluation.max_new_tokens", "8"]) == 2
    assert "task: must be set, as the run whole_chats has none" in capsys.readouterr().err


def test_what_is_printed_is_checked(at_work, here, capsys):
    assert main([*sft("chats", "new"), "--print_config", "--data.max_tokens", "5"]) == 2
    assert "data.train: must have a row that can be used" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", ["smollm2_sft", pytest.param("smollm2_dpo", marks=pytest.mark.slow)]
)
def test_a_recipe_runs_on_the_files_of_its_guide(at_work, here, recipe, tmp_path, monkeypatch):
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/sft.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "sft.md", "exec"), {})
    small = {
        "steps": 2,
        "model.path": here / "talker",
        "model.lora.rank": 4,
        "model.lora.targets": "[q_proj]",
        "data.held_out": 388,
        "run.directory": "run",
        "mesh.fsdp": 1,
        "batch_size": 4,
    }
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert main(["sft", "--config", recipe, *options]) == 0
    last = lines_of(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["step"] == 2 and last["validation/loss"] > 0
