"""Runs that the first edition recorded are read, evaluated and resumed.

`tests/golden/first_edition/make.py` says how the runs were made, by the first edition itself.
"""

import dataclasses
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_records import lines_of, machine

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.renames import current_metrics
from entropy_rl.config.train import TrainConfig
from entropy_rl.evaluation import read_result
from entropy_rl.runs.directory import CONFIG_FILE
from entropy_rl.runs.stored import find_file, read_metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "first_edition"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
RUNS = ("critic", "replay")


@pytest.fixture
def recorded(here, monkeypatch) -> Path:
    """The working directory with the recorded runs, as they were recorded."""
    monkeypatch.delitem(sys.modules, "spoil", raising=False)  # another test's, in its directory
    for name in (*RUNS, "evaluated"):
        shutil.rmtree(name, ignore_errors=True)
    with tarfile.open(GOLDEN / "runs.tar.xz") as archive:
        archive.extractall(here, filter="data")
    return here


def assert_same_numbers(found: dict, wanted: dict) -> None:
    """Equal to the bit on a machine like the one that recorded them; elsewhere to 1e-4.

    The learning rate is a metric that the first edition did not have.
    """
    found = {name: x for name, x in found.items() if not name.endswith("learning_rate")}
    assert found.keys() == wanted.keys()
    if machine() == EXPECTED["machine"]:
        assert found == wanted
    else:
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], 1e-4, 1e-6, err_msg=name)


def test_a_recorded_config_is_read_with_current_names(recorded):
    config = parse_config(TrainConfig, "train", ["--config", "critic/config.yaml"])
    assert config.batching.mini_batch_prompts == 2
    assert config.batching.max_tokens_per_micro_batch == 64
    assert config.batching.max_nonfinite_updates == 9
    assert config.loss.token_weights == [{"name": "forking_tokens", "fraction": 0.5}]
    assert config.critic.max_tokens_per_micro_batch == 64
    assert config.decoding.slots == 8 and config.run.max_to_keep == 1
    config = parse_config(TrainConfig, "train", ["--config", "replay/config.yaml"])
    assert config.advantage == [{"name": "rloo"}]
    assert config.replay == {"name": "uec_replay", "rollouts": 1, "every": 2, "above": 0.1}


def test_the_same_config_of_a_user_is_refused_in_one_line(recorded, capsys):
    shutil.copy("critic/config.yaml", "old.yaml")
    assert main(["train", "--config", "old.yaml"]) == 2
    line = "old.yaml: batching.prompts_per_update: renamed to batching.mini_batch_prompts\n"
    assert capsys.readouterr().err == f"entropy-rl train: {line}"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("replay", "critic")))
        for name in RUNS
    ],
)
def test_a_resumed_run_has_the_metrics_that_the_first_edition_gives_it(name, recorded, capsys):
    before = lines_of(Path(name, "samples.jsonl"))
    assert main(["train", "--config", f"{name}/config.yaml", "--steps", "4"]) == 0
    assert capsys.readouterr().err.startswith(f"resuming {name} after step 2 of 4\n")
    rows = lines_of(Path(name, "metrics.jsonl"))
    wanted = [current_metrics(row) for row in EXPECTED["resumed"][name]]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for found, row in zip(rows, wanted, strict=True):
        assert_same_numbers(found, row)
    assert lines_of(Path(name, "samples.jsonl"))[: len(before)] == before
    # What is written from here on has current names.
    plain = yaml.safe_load(Path(name, CONFIG_FILE).read_text())
    assert plain["batching"]["mini_batch_prompts"] == 2 and "decoding" in plain
    assert "prompts_per_update" not in plain["batching"] and "schedule" not in plain
    # A second resumption reads a checkpoint with current names.
    assert main(["train", "--config", f"{name}/config.yaml", "--steps", "4"]) == 0
    assert lines_of(Path(name, "metrics.jsonl")) == rows


def test_updates_that_were_not_applied_stay_in_the_directory_of_the_first_edition(recorded):
    assert find_file(Path("critic"), "nonfinite_updates") == Path("critic/bad_updates")
    assert find_file(Path("replay"), "nonfinite_updates") == Path("replay/nonfinite_updates")


@pytest.mark.slow
def test_debug_update_prints_what_the_first_edition_prints(recorded, capsys):
    dump = EXPECTED["looked_into"].partition(":")[0]
    assert main(["debug-update", dump]) == 0
    assert capsys.readouterr().out == EXPECTED["looked_into"]


def test_a_complete_evaluation_is_not_repeated_and_has_the_estimates_of_the_first_edition(
    recorded, capsys
):
    names = ("samples.jsonl", "origin.json")
    before = {name: Path("evaluated", name).read_bytes() for name in names}
    wanted = read_result(Path("evaluated"))
    assert main(["evaluate", "--config", "evaluated/config.yaml"]) == 0
    assert {name: Path("evaluated", name).read_bytes() for name in names} == before
    found = read_result(Path("evaluated"))
    # The intervals of rates, and those of equal values, have another formula now.
    for name in ("avg_at_n", "maj_at_n", "repetition"):
        assert getattr(found, name)[0] == getattr(wanted, name)[0]
    for name in ("pass_at_k", "distinct"):
        one, other = ({k: x[0] for k, x in getattr(e, name).items()} for e in (found, wanted))
        assert one == other
    changed = dict.fromkeys(("avg_at_n", "maj_at_n", "pass_at_k", "distinct", "repetition"))
    changed |= {"answered": None, "answered_problems": None}  # not in the first edition
    assert dataclasses.replace(found, **changed) == dataclasses.replace(wanted, **changed)


def test_an_evaluation_of_a_recorded_run_draws_the_same_samples(recorded, capsys):
    assert main(["evaluate", "--config", "evaluated/config.yaml", "--output", "again"]) == 0
    found, wanted = (lines_of(Path(name, "samples.jsonl")) for name in ("again", "evaluated"))
    assert [row["tokens"] for row in found] == [row["tokens"] for row in wanted]
    assert [row["verdict"] for row in found] == [row["verdict"] for row in wanted]
    assert [list(row) for row in found] == [list(row) for row in wanted]
    assert main(["compare", "evaluated", "again", "--output", "compared"]) == 0
    assert "other settings" not in capsys.readouterr().out


def test_a_recorded_run_is_reported_analyzed_and_exported(recorded, capsys):
    assert main(["report", "critic", "replay", "evaluated", "--output", "page.html"]) == 0
    page = Path("page.html").read_text()
    for current, old in (
        ("mini_batch_prompts", "prompts_per_update"),
        ("token_weights", "loss.selection"),
        ("rloo", "leave_one_out"),
        ("uec_replay", "advantage_replay"),
    ):
        assert current in page and old not in page
    assert main(["analyze", "--samples", "critic", "--output", "analyzed"]) == 0
    dynamics = json.loads(Path("analyzed/analysis.json").read_text())["dynamics"]
    assert [row["step"] for row in dynamics["metrics"]] == [1, 2]
    assert main(["export", "--model", "replay", "--output", "exported"]) == 0
    assert Path("exported/model.safetensors").exists()


def test_metrics_that_were_cut_off_are_read_up_to_there(recorded):
    path = Path("replay/metrics.jsonl")
    rows = read_metrics(path)
    path.write_text(path.read_text()[:-10])
    assert read_metrics(path) == rows[:-1] and "replay_weight" in rows[-1]
