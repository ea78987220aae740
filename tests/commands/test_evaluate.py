"""`entropy-rl evaluate` as a user runs it: stopped, killed, shared between processes, in files."""

import contextlib
import csv
import importlib
import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from tiny_runs import finish, make_workspace, run, start, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.evaluation import read_samples

CONFIG = {
    "seed": 5,
    "model": {"path": "model"},
    "task": {"name": "luck:Luck", "args": {"counts": {"test": 8}}},
    "evaluation": {"split": "test", "samples": 6, "max_new_tokens": 8, "rows_per_call": 4},
    "max_prompt_tokens": 16,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    directory = make_workspace(tmp_path_factory.mktemp("evaluate") / "workspace")
    write_yaml(directory / "evaluate.yaml", CONFIG)
    return directory


@pytest.fixture
def here(workspace, monkeypatch) -> Path:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(
        importlib.import_module("entropy_rl.evaluate"),
        "write_pass_at_k",
        lambda directory, evaluations: [],
    )  # slow
    return workspace


@pytest.fixture(scope="module")
def whole(workspace) -> Path:
    """An evaluation that was never interrupted."""
    with contextlib.chdir(workspace):
        assert main(evaluate("whole")) == 0
    return workspace / "whole"


def evaluate(output, *more: str) -> list[str]:
    return ["evaluate", "--config", "evaluate.yaml", "--output", str(output), *more]


def same(one: Path, other: Path) -> bool:
    names = ("samples.jsonl", "evaluation.json")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_an_evaluation_leaves_every_sample_and_its_figures_in_files(whole):
    rows = list(read_samples(whole))
    assert len(rows) == 48 and {row["verdict"] for row in rows} == {"correct", "wrong"}
    assert all(row["length"] == len(row["tokens"]) == len(row["entropy"]) for row in rows)
    result = json.loads((whole / "evaluation.json").read_text())
    table = list(csv.DictReader((whole / "pass_at_k.csv").open()))
    assert [row["k"] for row in table] == list(result["pass_at_k"]) == ["1", "2", "4"]
    assert [float(row["pass_at_k"]) for row in table] == [
        value[0] for value in result["pass_at_k"].values()
    ]


def test_a_run_is_evaluated_on_its_own_task_unless_another_is_named(here, capsys):
    without = {name: value for name, value in CONFIG.items() if name != "task"}
    write_yaml(here / "no_task.yaml", without | {"output": "of_run"})
    command = ["evaluate", "--config", "no_task.yaml", "--print_config"]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert "task: must be set, as model is no training run, got None" in line
    shutil.copytree(here / "model", here / "trained" / "model")
    task = {"name": "arithmetic", "args": {"counts": {"unseen": 4}}, "train_split": "longer"}
    write_yaml(here / "trained" / "config.yaml", {"model": CONFIG["model"], "task": task})
    of_run = ["--model.path", "trained", "--evaluation.split", "unseen"]
    with pytest.raises(SystemExit, match="0"):  # accepted and printed
        main([*command, *of_run])
    assert main([*command, *of_run, "--task.name", "luck:Luck"]) == 2  # it has no such split
    assert "split: " in capsys.readouterr().err


def test_an_evaluation_that_an_earlier_version_began_with_a_split_to_train_on_goes_on(here):
    command = evaluate("earlier", "--print_config")
    (here / "earlier").mkdir()
    task = CONFIG["task"] | {"train_split": "longer"}
    write_yaml(here / "earlier" / "config.yaml", CONFIG | {"task": task, "output": "earlier"})
    with pytest.raises(SystemExit, match="0"):
        main(command)


def test_rows_beyond_what_the_model_was_made_for_are_told(here, caplog):
    settings = json.loads((here / "model" / "config.json").read_text())
    shutil.copytree(here / "model", here / "short")
    (here / "short" / "config.json").write_text(
        json.dumps(settings | {"max_position_embeddings": 9})
    )
    assert main(evaluate("short_rows", "--model.path", "short", "--evaluation.problems", "1")) == 0
    assert re.search(r"short was made for 9 positions; rows can have 1\d here", caplog.text)


def test_a_check_that_always_crashes_ends_in_one_line_and_its_samples_are_not_kept(here, capsys):
    (here / "silent.py").write_text(
        "import os\nfrom luck import Luck\nfrom entropy_rl.tasks import Verdict\n\n\n"
        "class Silent(Luck):\n    def judge(self, problems, completions):\n"
        "        verdict = os.environ.get('SILENT')\n"
        "        judged = super().judge(problems, completions)\n"
        "        return [Verdict(verdict)] * len(judged) if verdict else judged\n"
    )
    command = evaluate("silent", "--task.name", "silent:Silent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SILENT", "crash")
        assert main(command) == 1
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("entropy-rl")]
        assert re.fullmatch(
            r"entropy-rl evaluate: none of the first \d+ samples was judged: every check crashed; "
            "they are not kept",
            line,
        )
        patch.setenv("SILENT", "timeout")
        assert main(command) == 1
        assert capsys.readouterr().err.splitlines()[-1] == (
            "entropy-rl evaluate: silent: none of 48 samples was judged: every check timed out, "
            "crashed or did not judge; delete its samples to evaluate again with a check that works"
        )
    (here / "silent" / "samples.jsonl").unlink()
    assert main(command) == 0


def test_a_signal_stops_after_the_batch_and_the_same_command_goes_on(
    whole, workspace, here, capsys, monkeypatch
):
    for name, code in [("SIGINT:1", 130), ("SIGTERM:7", 143)]:
        monkeypatch.setenv("SIGNAL_AT_CALL", name)
        assert main(evaluate("stopped")) == code
        *_, line = capsys.readouterr().err.splitlines()
        assert line.endswith(" of 48 samples; the same command goes on from there")
    monkeypatch.delenv("SIGNAL_AT_CALL")
    # 1 and 7 batches, of 4 and 2 samples in turn.
    assert len(list(read_samples(workspace / "stopped"))) == 4 * (4 + 2)
    assert main(evaluate("stopped")) == 0
    assert same(whole, workspace / "stopped")


def test_processes_may_share_an_evaluation(whole, workspace, here, capsys):
    for shard, last in (
        (1, "shared lacks samples of other shards"),
        (0, "everything is in shared"),
    ):
        assert main(evaluate("shared", "--shard", str(shard), "--shards", "2")) == 0
        assert last in capsys.readouterr().out
    one, other = (
        sorted((row["problem"], row["sample"], row["tokens"]) for row in read_samples(directory))
        for directory in (whole, workspace / "shared")
    )
    assert one == other
    assert main(evaluate("shared", "--shard", "1")) == 2
    assert "shard: must be set if and only if shards is, got 1" in capsys.readouterr().err
    assert main(evaluate("shared", "--shard", "2", "--shards", "2")) == 2
    assert "shard: must be >= 0 and < shards (2), got 2" in capsys.readouterr().err
    assert main(evaluate("other", "--shard", "0", "--shards", "99")) == 2
    assert "shards: must be at most 8, the number of problems, got 99" in capsys.readouterr().err


def test_other_settings_are_refused_and_what_is_complete_is_only_read(whole, here, capsys):
    assert main(evaluate("whole", "--seed", "6")) == 2
    assert (
        "output: whole holds another run (its seed is 5, here it is 6)" in capsys.readouterr().err
    )
    before = (whole / "samples.jsonl").stat().st_mtime_ns
    # How many samples are drawn side by side may change.
    assert main(evaluate("whole", "--evaluation.rows_per_call", "3")) == 0
    assert (whole / "samples.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_an_evaluation_that_is_killed_at_ten_random_moments_leaves_the_file_of_one_that_never_was(
    workspace, here
):
    more = ["--evaluation.samples", "1024"]
    assert run(workspace, *evaluate("lucky", *more)).returncode == 0
    moments, sizes, file = random.Random(1), [], workspace / "unlucky" / "samples.jsonl"
    whole = (workspace / "lucky" / "samples.jsonl").stat().st_size
    for i in range(10):
        process = start(workspace, *evaluate("unlucky", *more))
        if i % 4:  # while samples are written, however long that takes here
            enough = (file.stat().st_size if file.exists() else 0) + moments.random() * whole / 8
            while process.poll() is None and not (file.exists() and file.stat().st_size > enough):
                time.sleep(0.002)
        else:
            time.sleep(moments.uniform(0, 6))
        process.send_signal(signal.SIGKILL)
        finish(process)
        sizes.append(len(list(read_samples(workspace / "unlucky"))))
    assert sizes == sorted(sizes) and len(set(sizes)) > 3 and sizes[-1] < 8 * 1024
    assert run(workspace, *evaluate("unlucky", *more)).returncode == 0
    assert same(workspace / "lucky", workspace / "unlucky")
