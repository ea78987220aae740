"""Studies: a grid of runs survives stops and crashes, and the registered rule decides."""

import contextlib
import dataclasses
import fcntl
import importlib
import json
import math
import os
import platform
import re
import shutil
import signal
import socket
import threading
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from error_lines import says
from tiny_runs import EVALUATION, TRAIN, finish, make_workspace, start, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.cli.parse import parse_config
from entropy_rl.config.study import FlagsConfig, Hypothesis, StudyConfig
from entropy_rl.evaluation import Evaluation
from entropy_rl.evaluation.compare import compare_runs
from entropy_rl.runs.jsonl import write_jsonl
from entropy_rl.runs.lock import one_writer
from entropy_rl.runs.preemption import Interrupted
from entropy_rl.studies import design, machine, plan, runner
from entropy_rl.studies.analysis import analyze_study
from entropy_rl.studies.grid import Unit
from entropy_rl.studies.hypotheses import (
    HypothesisTest,
    baseline_differences,
    decide,
    hypothesis_tests,
)
from entropy_rl.studies.matched import matched_differences
from entropy_rl.studies.measures import UnitResult, find_flags, mean_over_seeds, measures_of
from entropy_rl.studies.plan import expected_seconds, time_left
from entropy_rl.studies.records import ProblemTally, Record, read_problems, write_problems
from entropy_rl.studies.report import verdict

ROOT = Path(__file__).parents[2]
STUDY = {
    "train": {"config": "train.yaml", "overrides": {"steps": 2, "run.checkpoint_every": 1}},
    "evaluate": {"config": "evaluate.yaml"},
    "arms": {"plain": {"advantage": [{"name": "group_normalize"}]}, "shaped": {}},
    "seeds": [0, 1],
    "hypotheses": [
        {
            "name": "more",
            "claim": "Shaping solves more.",
            "arm": "shaped",
            "against": "plain",
            "endpoint": "pass@2",
            "smallest_effect": 0.01,
        },
        {
            "name": "learns",
            "claim": "Training helps.",
            "arm": "plain",
            "against": "base",
            "endpoint": "pass@1",
            "smallest_effect": 0.01,
            "alpha": 0.1,
        },
    ],
    "output": "study",
}
EVALUATE = {
    "seed": 0,
    "model": {"path": "model"},
    "task": TRAIN["task"],
    "evaluation": EVALUATION,
    "output": "evaluated",
    "mesh": {"fsdp": 1},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    directory = make_workspace(tmp_path_factory.mktemp("study") / "workspace")
    write_yaml(directory / "evaluate.yaml", EVALUATE)
    write_yaml(directory / "study.yaml", STUDY)
    return directory


@pytest.fixture
def here(workspace, monkeypatch) -> Path:
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(workspace))
    return workspace


def in_this_process(design, units, phase, cores):
    """Replaces a child process, whose imports and compilation would take most of the time."""
    with (
        (design.directory_of(units[0]) / "log.txt").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        code = main(design.command(units, phase))
    return types.SimpleNamespace(returncode=code, poll=lambda: code)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    if "slow" not in request.keywords:
        make_quick(monkeypatch)


def make_quick(monkeypatch):
    monkeypatch.setattr(runner, "_start_child", in_this_process)

    def a_machine(parallel):
        return machine.Machine(f"a machine, {parallel} at once", [[]] * parallel)

    for module in (runner, plan):
        monkeypatch.setattr(module, "find_machine", a_machine)
    monkeypatch.setattr("entropy_rl.report.summary.write_curves", lambda directory: directory)
    monkeypatch.setattr(
        importlib.import_module("entropy_rl.evaluate"),
        "write_pass_at_k",
        lambda directory, curves: [],
    )


def study(*more: str) -> list[str]:
    return ["study", "--config", "study.yaml", *more]


@pytest.fixture(scope="module")
def whole(workspace) -> Path:
    """A study that was never interrupted."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch)
        monkeypatch.chdir(workspace)
        monkeypatch.syspath_prepend(str(workspace))
        assert main(study("--output", "whole")) == 0
    return workspace / "whole"


def without_clock(directory: Path) -> dict:
    """study.json without times, paths and the machine, which a quick study does not look up."""
    plain = json.loads((directory / "study.json").read_text())
    del plain["design"]
    for unit in plain["units"]:
        del unit["seconds"], unit["machine"]
    return plain


# --- run ---


def test_a_study_runs_its_grid_and_reports_verdicts(whole):
    plain = json.loads((whole / "study.json").read_text())
    assert plain["complete"] and [(u["arm"], u["seed"]) for u in plain["units"]] == [
        *[("base", 0), ("plain", 0), ("shaped", 0)],
        *[("plain", 1), ("shaped", 1)],
    ]
    more, learns = plain["hypotheses"]
    assert (more["seeds"], more["problems"], more["is_final"]) == (2, 3, True)
    assert learns["against_mean"] == plain["arms"]["base"]["pass@1"][0]
    assert plain["arms"]["shaped"]["pass@1"][3] == 2 and plain["arms"]["base"]["pass@1"][1] is None
    assert plain["arms"]["plain"]["tokens"][0] > 0
    budget, length = (plain["matched"]["more"][f"equal {name}"] for name in ("budget", "length"))
    for control in (budget, length):
        assert (control["seeds"], control["problems"] + control["problems_left_out"]) == (2, 3)
    assert budget["problems"] > 0
    text = (whole / "study.md").read_text()
    parts = (
        "Complete: 5 runs.",
        '- more. Claim: "Shaping solves more." Verdict: not settled.',
        "; two-sided p ",
        "| shaped | 2 | registered |",  # in pass@2, which has a verdict
        "| base | 2 | ",
        "Each arm minus `plain`",
        "| more | equal budget | ",
        "entropy-rl train ",
    )
    for part in parts:
        assert part in text, part
    for name in ("pass_at_k.png", "curves.png"):
        assert f"![{name}]({name})" in text and (whole / name).stat().st_size > 5000


def test_tables_of_a_study_say_what_they_show(whole):
    tables = whole / "tables"
    captions = {
        path.stem: next(line for line in path.read_text().splitlines() if "caption" in line)
        for path in tables.glob("*.tex")
    }
    assert set(captions) == {"hypotheses", "pass_at_k", "controls", "matched", "differences"}
    assert all(caption.startswith(r"\caption{Study whole") for caption in captions.values())
    assert "two-sided p after Holm" in captions["hypotheses"]
    assert "Each arm minus plain, on" in captions["differences"]
    assert "bootstrap over seeds and problems" in captions["differences"]
    assert "'" not in (tables / "hypotheses.csv").read_text()  # "+0.1 [-0.2, +0.4]" is a number


@pytest.mark.parametrize(
    "low, high, p, words",
    [
        (0.04, 0.2, 0.01, "supports (a is above b)."),
        (-0.2, -0.04, 0.01, "contradicts (a is below b)."),
        (-0.02, 0.01, 0.5, "no material effect (the interval is within ±0.03)."),
        (-0.2, 0.1, 0.5, "not settled."),
    ],
)
def test_a_verdict_is_in_words_of_the_rule_and_names_problems_that_are_left_out(
    low, high, p, words
):
    hypothesis = Hypothesis("h", "It matters where.", "a", "b", "pass@1", smallest_effect=0.03)
    test = HypothesisTest(
        *((low + high) / 2, low, high, p, 0.5, 0.5, 2, 2, 20, 3),
        hypothesis=hypothesis,
        decision=decide(hypothesis, low, high, p),
        p_adjusted=p,
    )
    text = verdict(test, types.SimpleNamespace(flags={}))
    assert text.startswith(f'h. Claim: "It matters where." Verdict: {words} pass@1 of a minus b:')
    assert "over 2 seeds and 20 problems, 3 problems left out; two-sided p" in text


def test_the_arms_of_a_seed_see_the_same_prompts_and_seeds_differ(whole):
    def prompts(arm, seed):
        rows = (
            (whole / "runs" / arm / str(seed) / "train" / "samples.jsonl").read_text().splitlines()
        )
        return [json.loads(row)["problem"] for row in rows]

    assert (
        prompts("plain", 0) == prompts("shaped", 0) != prompts("shaped", 1) == prompts("plain", 1)
    )


def test_arms_of_hypotheses_come_before_other_arms_and_each_seed_by_seed(here):
    arms = {"other": {}, "plain": STUDY["arms"]["plain"], "more": {}, "shaped": {}}
    write_yaml(here / "order.yaml", STUDY | {"arms": arms, "seeds_of": {"more": [1]}})
    found = design(parse_config(StudyConfig, "study", ["--config", "order.yaml"]))
    assert list(map(str, found.units())) == [
        "base, seed 0",
        *("plain, seed 0", "shaped, seed 0", "plain, seed 1", "shaped, seed 1"),
        *("other, seed 0", "other, seed 1", "more, seed 1"),
    ]


def test_an_arm_differs_only_by_its_overrides(whole):
    configs = [
        yaml.safe_load((whole / f"runs/{arm}/0/train/config.yaml").read_text())
        for arm in ("plain", "shaped")
    ]
    assert [c.pop("advantage") for c in configs] == [TRAIN["advantage"][:1], TRAIN["advantage"]]
    first, second = (c["run"].pop("directory") for c in configs)
    assert first != second
    assert configs[0] == configs[1] and configs[0]["steps"] == 2


def test_a_complete_study_is_not_run_again(whole, here, capsys):
    files = {
        path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*") if path.is_file()
    }
    assert main(study("--output", "whole")) == 0
    assert capsys.readouterr().err == ""
    assert {
        path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*") if path.is_file()
    } == files


def assert_same_study(one: Path, other: Path, units=("plain/0", "shaped/0", "shaped/1")) -> None:
    assert without_clock(one) == without_clock(other)
    for unit in units:
        a, b = (
            [
                {name: v for name, v in json.loads(row).items() if not name.startswith("time/")}
                for row in (d / "runs" / unit / "train/metrics.jsonl").read_text().splitlines()
            ]
            for d in (one, other)
        )
        assert a == b


class Died(BaseException):
    """The process is killed: no cleanup runs."""


@pytest.mark.slow
def test_a_stopped_and_crashed_study_equals_an_uninterrupted_one(whole, here, capsys, monkeypatch):
    arguments = study("--output", "hurt")
    with monkeypatch.context() as stopping:
        stopping.setenv("SIGNAL_AT_CALL", "SIGTERM:1")
        assert main(arguments) == 143
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        line == "entropy-rl study: stopped during base, seed 0; the same command resumes the study"
    )

    def die(*_):
        raise Died

    for moment in ("write_record", "write_problems"):  # a run is done, but not recorded
        with monkeypatch.context() as dying:
            dying.setattr(runner, moment, die)
            with pytest.raises(Died):
                main(arguments)
    capsys.readouterr()
    assert main(arguments) == 0
    assert "study 5/5  shaped, seed 1: evaluate" in capsys.readouterr().err
    assert_same_study(whole, here / "hurt")


@pytest.mark.slow
def test_a_killed_and_stopped_study_in_processes_equals_an_uninterrupted_one(workspace):
    assert finish(start(workspace, *study("--output", "unhurt")), timeout=1200).returncode == 0
    arguments = study("--output", "killed")
    process = start(workspace, *arguments)
    wait_for(process, workspace / "killed/runs/plain/0/train/checkpoints/1")
    process.kill()
    process.communicate()
    process = start(workspace, *arguments)
    wait_for(process, workspace / "killed/runs/shaped/0/train/metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.returncode == 143
    line = "entropy-rl study: stopped during shaped, seed 0; the same command resumes the study"
    assert result.stderr.splitlines()[-1] == line
    result = finish(start(workspace, *arguments), timeout=1200)
    assert result.returncode == 0, result.stderr
    assert "base" not in result.stderr and "study 4/5  plain, seed 1: train" in result.stderr
    assert_same_study(workspace / "unhurt", workspace / "killed")


def wait_for(process, path: Path) -> None:
    end = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


# The start of a real child, then a command that reports its cores and waits.
FAKE_COMMAND = (
    runner._CHILD.partition("from entropy_rl.cli.main")[0]
    + """
import json, pathlib, time
cores = json.dumps(sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [])
pathlib.Path("READY/writing-" + str(os.getpid())).write_text(cores)
os.rename("READY/writing-" + str(os.getpid()), "READY/ready-" + str(os.getpid()))
time.sleep(100)
"""
)


class Saving:
    """A child that saves before it ends, unless it is asked to stop a second time."""

    def __init__(self, polls: int):
        self.polls, self.asked, self.returncode = polls, 0, None

    def terminate(self) -> None:
        self.asked += 1

    def poll(self) -> int | None:
        self.polls -= self.asked
        if self.polls < 0:
            self.returncode = 128 + signal.SIGTERM if self.asked == 1 else -signal.SIGTERM
        return self.returncode


def test_children_that_take_longer_to_save_are_asked_to_stop_once(here, monkeypatch):
    found = design(
        parse_config(StudyConfig, "study", study("--output", "once", "--parallel", "3")[1:])
    )
    found.directory.mkdir()
    children = []

    def start(*_):
        children.append(Saving(polls=9 * len(children)))
        if len(children) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return children[-1]

    monkeypatch.setattr(runner, "_start_child", start)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.0)
    with pytest.raises(Interrupted):
        runner.run_units(found, lambda line: None)
    assert [(child.asked, child.returncode) for child in children] == [(1, 143)] * 3


@pytest.mark.parametrize("code", [129, -1, 130, -2, 143, -15])
def test_a_run_that_was_asked_to_stop_is_not_recorded_as_failed(code, here, monkeypatch):
    found = design(parse_config(StudyConfig, "study", study("--output", f"ended{code}")[1:]))
    found.directory.mkdir()
    ended = types.SimpleNamespace(returncode=code, poll=lambda: code)
    monkeypatch.setattr(runner, "_start_child", lambda *_: ended)
    with pytest.raises(Interrupted) as caught:
        runner.run_units(found, lambda line: None)
    assert caught.value.exit_code == 128 + abs(code) % 128
    assert not any(record.failed for record in runner.read_records(found).values())


def test_a_stop_request_is_forwarded_to_all_children(here, monkeypatch):
    found = design(
        parse_config(StudyConfig, "study", study("--output", "asked", "--parallel", "3")[1:])
    )
    found.directory.mkdir()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr(runner, "_CHILD", FAKE_COMMAND.replace("READY", str(here / "asked")))
    said = []

    def ask():
        while len(list(found.directory.glob("ready-*"))) < 3:
            time.sleep(0.01)
        with (found.directory / "running").open("w") as file, pytest.raises(BlockingIOError):
            # The children hold the lock, even if the study dies.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    with pytest.raises(Interrupted, match="the same command resumes the study"):
        runner.run_units(found, said.append)
    thread.join()
    assert [line.split("  ")[1].split(":")[0] for line in said] == [
        "base, seed 0",
        "plain, seed 0",
        "shaped, seed 0",
    ]
    assert all(record.failed is None for record in runner.read_records(found).values())
    if hasattr(os, "sched_getaffinity") and jax.default_backend() == "cpu":
        of_each = [json.loads(path.read_text()) for path in found.directory.glob("ready-*")]
        assert sorted(of_each) == sorted(machine.share_cores(sorted(os.sched_getaffinity(0)), 3))


@pytest.mark.parametrize(
    "cores, parallel, shares",
    [
        ([0, 1], 2, [[0], [1]]),
        ([2, 3, 6, 7], 2, [[2, 3], [6, 7]]),
        ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3, 4]]),
        ([0, 1, 2, 3, 4], 3, [[0], [1, 2], [3, 4]]),
        ([0, 1], 3, [[0], [1], [0]]),
        ([5], 2, [[5], [5]]),
    ],
)
def test_parallel_runs_on_a_cpu_get_separate_cores(cores, parallel, shares):
    assert machine.share_cores(cores, parallel) == shares


class Slow:
    """A child that ends after a number of polls."""

    def __init__(self, polls: int, running: list):
        self.polls, self.running, self.returncode = polls, running, None
        running.append(self)

    def poll(self) -> int | None:
        self.polls -= 1
        if self.polls < 0:
            self.running.remove(self)
            self.returncode = 0
        return self.returncode


def test_a_machine_is_named_by_its_processor(tmp_path):
    """Other CPUs round differently, so that a seed gives other samples."""
    found = tmp_path / "cpuinfo"
    found.write_text("processor\t: 0\nmodel name\t: AMD  EPYC 9B14\nflags : fpu\n")
    assert machine.processor(found) == "AMD EPYC 9B14"
    found.write_text("processor\t: 0\n")  # as on ARM
    assert machine.processor(found) == machine.processor(tmp_path / "none") == platform.machine()


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_parallel_runs_are_kept_busy_and_a_unit_is_finished_before_another_begins(
    parallel, here, monkeypatch
):
    found = design(
        parse_config(
            StudyConfig,
            "study",
            study("--output", f"at{parallel}", "--parallel", str(parallel))[1:],
        )
    )
    found.directory.mkdir()
    started, running, most = [], [], []

    def start(_, units, phase, cores):
        started.append((*units, phase))
        child = Slow(polls=len(started) % 3, running=running)
        most.append(len(running))
        return child

    monkeypatch.setattr(runner, "_start_child", start)
    monkeypatch.setattr(runner, "write_problems", lambda *_: None)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.0)
    runner.run_units(found, lambda line: None)
    assert max(most) == parallel and not running
    assert sorted(map(str, started)) == sorted(
        str((unit, phase)) for unit in found.units() for phase in unit.phases
    )
    trained = [unit for unit, phase in started if phase == "train"]
    assert trained == found.units()[1:]
    for i, unit in enumerate(trained):
        begun = started.index((unit, "evaluate"))
        assert i + parallel >= len(trained) or begun < started.index(
            (trained[i + parallel], "train")
        )


def stacked_study(here, **changes):
    overrides = STUDY["train"]["overrides"] | {"model.lora": {"rank": 4, "alpha": 8.0}}
    train = STUDY["train"] | {"overrides": overrides}
    changed = {"train": train, "seeds_of": {"shaped": [0]}, "stacked": 2} | changes
    return write_yaml(here / "stacked.yaml", STUDY | changed | {"output": "stacked"})


def test_stacked_units_train_together_and_are_evaluated_one_by_one(here, monkeypatch, capsys):
    stacked_study(here)
    found = design(parse_config(StudyConfig, "study", ["--config", "stacked.yaml"]))
    found.directory.mkdir()
    started = []

    def start(design, units, phase, cores):
        started.append((" and ".join(map(str, units)), phase))
        return types.SimpleNamespace(returncode=0, poll=lambda: 0)

    monkeypatch.setattr(runner, "_start_child", start)
    monkeypatch.setattr(runner, "write_problems", lambda *_: None)
    runner.run_units(found, lambda line: None)
    assert started == [
        ("base, seed 0", "evaluate"),
        ("plain, seed 0 and shaped, seed 0", "train"),
        ("plain, seed 0", "evaluate"),
        ("shaped, seed 0", "evaluate"),
        ("plain, seed 1", "train"),
        ("plain, seed 1", "evaluate"),
    ]
    write_yaml(here / "no.yaml", STUDY | {"stacked": 2, "output": "no"})
    assert main(["study", "--config", "no.yaml"]) == 2
    line = "stacked: runs[0].model.lora: must be the section of LoRA, got None\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.slow
def test_a_stacked_study_trains_and_reports(here, monkeypatch, capsys):
    make_quick(monkeypatch)
    stacked_study(here)
    shutil.rmtree(here / "stacked", ignore_errors=True)
    assert main(["study", "--config", "stacked.yaml"]) == 0, capsys.readouterr().err
    record = json.loads((here / "stacked/runs/shaped/0/record.json").read_text())
    assert record["done"] == ["train", "evaluate"] and record["seconds"]["train"] > 0


@pytest.mark.slow
def test_a_killed_stacked_study_equals_an_uninterrupted_one(here):
    stacked_study(here)
    arguments = ["study", "--config", "stacked.yaml", "--output"]
    whole = finish(start(here, *arguments, "stacked-whole"), timeout=1200)
    assert whole.returncode == 0, whole.stderr
    process = start(here, *arguments, "stacked-killed")
    wait_for(process, here / "stacked-killed/runs/shaped/0/train/checkpoints/1")
    process.kill()
    process.communicate()
    result = finish(start(here, *arguments, "stacked-killed"), timeout=1200)
    assert result.returncode == 0, result.stderr
    log = (here / "stacked-killed/runs/plain/0/log.txt").read_text()
    assert "resuming stacked-killed/runs/shaped/0/train after step 1 of 2" in log
    units = ("plain/0", "shaped/0", "plain/1")
    assert_same_study(here / "stacked-whole", here / "stacked-killed", units)


def test_only_runs_the_named_arms(here, monkeypatch, capsys):
    only = ["--output", "some", "--only", "[shaped]"]
    found = design(parse_config(StudyConfig, "study", study(*only)[1:]))
    found.directory.mkdir()
    started = []

    def start(_, units, phase, cores):
        started.extend(units)
        return types.SimpleNamespace(returncode=0, poll=lambda: 0)

    monkeypatch.setattr(runner, "_start_child", start)
    monkeypatch.setattr(runner, "write_problems", lambda *_: None)
    runner.run_units(found, lambda line: None)
    assert {unit.arm for unit in started} == {"shaped"} and len(set(started)) == 2
    assert {unit.arm for unit, record in runner.read_records(found).items() if record.done} == {
        "shaped"
    }
    # The same study without `only` runs the rest.
    runner.run_units(
        design(parse_config(StudyConfig, "study", study(*only[:2])[1:])), lambda line: None
    )
    assert sorted(set(map(str, started))) == sorted(map(str, found.units()))
    assert main(study("--only", "[shapd]")) == 2
    assert (
        "only: must be one of base, plain, shaped, got 'shapd' (did you mean 'shaped'?)"
        in capsys.readouterr().err
    )


def test_a_failed_run_is_recorded_and_the_others_continue(here, capsys):
    arms = {"broken": {"rollout.max_prompt_tokens": 3}, "plain": STUDY["arms"]["plain"]}
    learns = STUDY["hypotheses"][1]
    changed = {"arms": arms, "hypotheses": [learns, learns | {"name": "breaks", "arm": "broken"}]}
    write_yaml(here / "failing.yaml", STUDY | changed | {"seeds": [0], "output": "failing"})
    assert main(["study", "--config", "failing.yaml"]) == 1
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert last.startswith(
        "entropy-rl study: 1 of 3 runs failed, the first: broken, seed 0: train failed "
        "(exit code 2): entropy-rl train: no prompt is left"
    ), last
    plain = json.loads((here / "failing" / "study.json").read_text())
    assert [unit["complete"] for unit in plain["units"]] == [True, False, True]
    text = (here / "failing" / "study.md").read_text()
    assert (
        "**Incomplete**: 1 of 3 runs are missing" in text
        and "- failed: broken, seed 0: train" in text
    )
    assert 'learns. Claim: "Training helps." Verdict: not settled.' in out and "unbounded" in out
    # Failures of arms that `only` leaves out do not count.
    assert main(["study", "--config", "failing.yaml", "--only", "[plain]"]) == 0


# --- plan and report ---


def test_plan_and_report_work_before_the_first_run(here, capsys):
    assert main(study("--do", "plan", "--output", "planned")) == 0
    text = capsys.readouterr().out
    assert not (here / "planned").exists()
    assert len(re.findall(r"\?  to do\n", text)) == 5
    assert "5 of 5 units to do; time left not known before a run is complete" in text
    assert "--seed 0 --run.directory planned/runs/shaped/0/train" in text
    assert main(study("--do", "report", "--output", "planned")) == 0
    assert "Verdict: no data yet." in capsys.readouterr().out
    assert "5 of 5 runs are missing" in (here / "planned" / "study.md").read_text()


def test_the_time_of_a_unit_is_estimated_from_its_arm_or_all_trained_arms():
    units = [Unit("base", 0), Unit("plain", 0), Unit("shaped", 0), Unit("plain", 1)]
    done = {"train": 60.0, "evaluate": 30.0}
    records = {
        units[0]: Record(("evaluate",), {"evaluate": 20.0}),
        units[1]: Record(("train", "evaluate"), done),
        units[2]: Record(("train",), {"train": 70.0}),
        units[3]: Record(),
    }
    assert list(expected_seconds(records).values()) == [20.0, 90.0, 90.0, 90.0]


def test_times_are_estimated_from_units_of_the_same_machine():
    def finished(seconds: float, machine: str) -> Record:
        return Record(("train", "evaluate"), {"train": seconds}, machine)

    records = {
        Unit("plain", 0): finished(10.0, "fast"),
        Unit("plain", 1): finished(100.0, "slow"),
        Unit("plain", 2): Record(),
        Unit("shaped", 0): finished(20.0, "fast"),
        Unit("shaped", 1): Record(),
    }
    missing = [Unit("plain", 2), Unit("shaped", 1)]
    for name, expected in {"fast": [10, 20], "slow": [100, 100], "new": [55, 20]}.items():
        assert [expected_seconds(records, name)[unit] for unit in missing] == expected
    assert time_left(records, parallel=2, machine="slow") == 100


def test_times_of_a_phase_add_up_and_what_was_spent_is_not_left():
    record = (
        Record().after("train", 10.0, "m", "failed", False).after("train", 5.0, "m", None, True)
    )
    assert record.seconds == {"train": 15.0}
    done = Record(("train", "evaluate"), {"train": 40.0, "evaluate": 10.0}, "m")
    assert time_left({Unit("a", 0): done, Unit("a", 1): record}, 1, machine="m") == 50.0 - 15.0


def test_tallies_are_sums_over_the_samples_of_a_problem(tmp_path):
    row = {"problem": 3, "completion": "x", "answer": None, "prompt": "", "right_answer": ""}
    samples = [
        ("correct", "eos", [1, 2], [0.5, 1.0]),
        ("timeout", "length", [1, 2, 3], [1.0, 2.0, 0.5]),
        ("wrong", "eos", [2], [1.0]),
    ]
    rows = [
        row
        | {"sample": i, "verdict": verdict, "finish_reason": reason}
        | {"tokens": tokens, "log_probs": entropy, "entropy": entropy, "length": len(tokens)}
        for i, (verdict, reason, tokens, entropy) in enumerate(samples)
    ]
    write_jsonl(tmp_path / "samples.jsonl", rows[::-1])  # as shards of several processes may be
    write_problems(tmp_path, tmp_path)
    found = read_problems(tmp_path)
    assert found == {3: ProblemTally(3, 2, 1, 1, 6, 6.0, lengths=[2, 1], is_correct=[1, 0])}
    endpoints = [found[3].endpoint(name) for name in ("length", "entropy", "truncated")]
    assert endpoints == [2.0, 1.0, 1 / 3]


def test_an_incomplete_study_is_reported_as_interim(whole, workspace, here, capsys):
    interim = workspace / "interim"
    shutil.copytree(whole, interim)
    shutil.rmtree(interim / "runs" / "shaped" / "1")
    assert main(study("--do", "report", "--output", "interim")) == 0
    out = capsys.readouterr().out
    assert 'Claim: "Shaping solves more." Verdict: interim, 1 of 2 seeds: not settled.' in out
    assert "interval unbounded" in out and 'Claim: "Training helps." Verdict: interim' not in out
    page = (interim / "study.md").read_text()
    assert "- shaped: seeds 1" in page and "Flags: not known before all runs are complete." in page


# --- errors ---


# Overrides of an arm that cannot work.
WRONG_ARMS = (
    ({"rewards": [{"name": "corect"}]}, "rewards[0].name: must be one of"),
    ({"replay": {"name": "x"}}, "replay.name: must be one of"),
    ({"curriculum": {"name": "x"}}, "curriculum.name: must be one of"),
    ({"teacher": {"path": "model"}}, "teacher: must be null without an advantage that reads it"),
    (
        {"old_log_probs": "sampler", "loss.token_weights": [{"name": "icepop"}]},
        "loss.token_weights: must be without importance weights",
    ),
    ({"run.loggers": [{"name": "x"}]}, "run.loggers[0].name: must be one of"),
    ({"task.name": "x"}, "task.name: must be one of"),
    ({"task.args.counst": 3}, "task.args.counst: must be one of"),
    ({"task.train_split": "x"}, "task.train_split: must be one of"),
)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"arms": {}}, "arms: must be at least one arm, got {}"),
        (
            {"evaluate": {"config": "evaluate.yaml", "overrides": {"task": None}}},
            "evaluate.task: must be given: the arm base is no run, got None",
        ),
        (
            {"arms": {"base": {}}},
            "arms: must be a name of letters, digits, '_', '-' and '.', other than 'base', "
            "got 'base'",
        ),
        (
            {"arms": {"a/b": {}}},
            "arms: must be a name of letters, digits, '_', '-' and '.', other than 'base', "
            "got 'a/b'",
        ),
        (
            {"seeds": [0, 0]},
            "seeds: must be a non-empty list of distinct integers >= 0, got [0, 0]",
        ),
        (
            {"seeds_of": {"shapde": [1]}},
            "seeds_of: must be one of plain, shaped, got 'shapde' (did you mean 'shaped'?)",
        ),
        (
            {"arms": {"x": {"advantage": [{"name": "nope"}]}}},
            "arms.x: advantage[0].name: must be one of gpg, ..., got 'nope'",
        ),
        (
            {"arms": {"x": {"los.kl_coef": 1}}},
            "arms.x: --los.kl_coef: must be one of seed, steps, ..., got 'los' (did you mean "
            "'loss'?)",
        ),
        ({"arms": {"x": {"seed": 1}}}, "arms.x.seed: must not be set here; the study sets it"),
        ({"arms": {"x": {"steps": 3}}}, "arms.x.steps: must be 2, as in all arms, got 3"),
        (
            {"arms": {"x": {"rollout.group_size": 2}}},
            "arms.x.rollout.group_size: must be 4, as in all arms, got 2",
        ),
        (
            {"seeds_of": {"plain": [7]}},
            "hypotheses[0].against: must be an arm that shares a seed with 'shaped', got 'plain'",
        ),
        (
            {"arms": {"x": {"model.path": "y"}}},
            "arms.x: must be the model of all arms (model), got 'y'",
        ),
        (
            {"train": {"config": "none.yaml"}},
            "train: --config: must be a file or one of the recipes",
        ),
        (
            {"hypothesis": {"arm": "shapde"}},
            "hypotheses[0].arm: must be one of base, plain, shaped, got 'shapde' (did you "
            "mean 'shaped'?)",
        ),
        (
            {"hypothesis": {"against": "shaped"}},
            "hypotheses[0].against: must be another arm, got 'shaped'",
        ),
        (
            {"hypothesis": {"endpoint": "pass@0"}},
            "hypotheses[0].endpoint: must be one of pass@K, length, entropy, truncated, got "
            "'pass@0'",
        ),
        (
            {"hypothesis": {"endpoint": "pass@64"}},
            "hypotheses[0].endpoint: must be pass@K with K <= evaluation.samples (2), got "
            "'pass@64'",
        ),
        (
            {"hypothesis": {"smallest_effect": 0}},
            "hypotheses[0].smallest_effect: must be > 0, got 0.0",
        ),
        (
            {"hypothesis": {"claims": "x"}},
            "hypotheses[0].claims: must be one of name, claim, arm, against, endpoint, "
            "smallest_effect, alpha, got 'claims' (did you mean 'claim'?)",
        ),
        ({"flags": {"skill_drop": 2}}, "flags.skill_drop: must be >= 0 and <= 1, got 2.0"),
        *(({"arms": {"a": {}, "b": one}}, f"arms.b: {message}") for one, message in WRONG_ARMS),
        (
            {"evaluate": {"config": "evaluate.yaml", "overrides": {"task.args.counst": 3}}},
            "evaluate: task.args.counst: must be one of",
        ),
        (
            {"evaluate": {"config": "evaluate.yaml", "overrides": {"evaluation.split": "tset"}}},
            "evaluate: evaluation.split: must be one of",
        ),
        (
            {"train": {"config": "train.yaml", "overrides": {"model.path": "nowhere"}}},
            "arms.plain: model.path: must be a Hugging Face directory",
        ),
    ],
)
def test_an_invalid_study_is_refused_in_one_line_before_any_run(here, capsys, changes, message):
    changes = dict(changes)
    first = STUDY["hypotheses"][0] | changes.pop("hypothesis", {})
    content = STUDY | {"hypotheses": [first] if "arms" not in changes else []} | changes
    write_yaml(here / "wrong.yaml", content | {"output": "wrong"})
    if "model.path: " not in message:  # models may be elsewhere, where a study is only planned
        assert main(["study", "--config", "wrong.yaml", "--do", "plan"]) == 2
        assert says(capsys.readouterr().err, f"entropy-rl study: {message}")
    assert main(["study", "--config", "wrong.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says(err, f"entropy-rl study: {message}"), err
    assert not (here / "wrong").exists()


@pytest.mark.slow
def test_critic_warmup_steps_have_no_policy_metrics(here):
    ppo = {
        "advantage": [{"name": "gae"}, {"name": "shape_by_entropy", "alpha": 0.1, "kappa": 2.0}],
        "critic": {"learning_rate": 0.01, "warmup_steps": 1},
    }
    changes = {"arms": STUDY["arms"] | {"ppo": ppo}, "seeds": [0], "output": "critic"}
    write_yaml(here / "ppo.yaml", STUDY | changes)
    assert main(["study", "--config", "ppo.yaml", "--only", "[ppo]"]) == 0
    alone, both = (
        json.loads(line)
        for line in (here / "critic/runs/ppo/0/train/metrics.jsonl").read_text().splitlines()
    )
    assert "entropy" not in alone
    (arm,) = json.loads((here / "critic" / "study.json").read_text())["arms"].values()
    assert arm["final_entropy"][0] == both["entropy"]
    assert "| truncated | unique_answers |" in (here / "critic" / "study.md").read_text()
    assert (here / "critic" / "curves.png").stat().st_size > 5000


def test_hypotheses_cannot_be_changed_once_registered(whole, here, capsys):
    later = [STUDY["hypotheses"][0] | {"smallest_effect": 0.5}]
    assert main(study("--output", "whole", "--hypotheses", json.dumps(later))) == 2
    assert "output: whole holds another run (its study.hypotheses is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "change", "changes_results"),
    [
        ("train", {"batching": {"max_tokens_per_micro_batch": 64}}, False),
        ("evaluate", {"evaluation": {"rows_per_call": 3}}, False),
        ("train", {"rollout": {"temperature": 0.9}}, True),
        ("evaluate", {"evaluation": {"max_new_tokens": 3}}, True),
    ],
)
def test_only_what_changes_no_result_may_change_in_the_recipes_of_a_study(
    section, change, changes_results, whole, here, capsys
):
    file = here / f"{section}.yaml"
    before = file.read_text()
    recipe = yaml.safe_load(before)
    for name, value in change.items():
        recipe[name] = recipe[name] | value if isinstance(value, dict) else value
    write_yaml(file, recipe)
    try:
        assert main(study("--output", "whole", "--do", "plan")) == (2 if changes_results else 0)
    finally:
        file.write_text(before)
    message = f"output: whole holds another run (its {section}."
    assert (message in capsys.readouterr().err) is changes_results


def test_two_processes_do_not_run_one_study(whole, here, capsys):
    with one_writer(whole / "lock", "held here"):
        assert main(study("--output", "whole")) == 2
    assert capsys.readouterr().err == (
        "entropy-rl study: output: whole: must have one writer, got a second process; "
        f"process {os.getpid()} on {socket.gethostname()} writes to it\n"
    )


# --- the rule ---


@pytest.mark.parametrize(
    "low, high, p, decision",
    [
        (0.01, 0.09, 0.01, "supports"),
        (-0.09, -0.01, 0.01, "contradicts"),
        (0.01, 0.09, 0.06, "not settled"),  # only before the correction
        (-0.01, 0.09, 0.2, "not settled"),
        (-0.09, 0.09, 1.0, "not settled"),
        (-0.02, 0.02, 0.9, "no material effect"),
        (0.01, 0.02, 0.001, "no material effect"),  # significant, but too small to matter
        (-0.02, 0.03, 0.5, "not settled"),
        (-math.inf, math.inf, 1.0, "not settled"),
        (math.nan, math.nan, 1.0, "not settled"),
    ],
)
def test_the_decision_rule(low, high, p, decision):
    hypothesis = Hypothesis("h", "c", "a", "b", "pass@1", smallest_effect=0.03)
    assert decide(hypothesis, low, high, p) == decision


def test_a_decision_and_its_interval_have_the_registered_alpha():
    loose, strict = (
        Hypothesis("h", "c", "a", "b", "pass@1", smallest_effect=0.03, alpha=alpha)
        for alpha in (0.1, 0.01)
    )
    assert [decide(h, 0.01, 0.09, 0.06) for h in (loose, strict)] == ["supports", "not settled"]
    assert decide(strict, 0.01, 0.09, 0.03) == "not settled"
    random, results = np.random.default_rng(0), {}
    for unit in (Unit(arm, seed) for arm in "ab" for seed in range(4)):
        correct = random.integers(0, 9, 20).tolist()
        tallies = {i: ProblemTally(8, 8, c, 0, 80, 1.0) for i, c in enumerate(correct)}
        results[unit] = UnitResult(None, tallies, {})
    widths = []
    for hypothesis in (loose, strict):
        found = types.SimpleNamespace(
            seeds=lambda arm: [0, 1, 2, 3],
            study=types.SimpleNamespace(registered=lambda h=hypothesis: [h]),
        )
        (test,) = hypothesis_tests(found, results)
        widths.append(test.high - test.low)
    assert widths[1] > 1.3 * widths[0]


@pytest.mark.parametrize(
    "problems, endpoint, decision",
    [
        (8, "pass@1", "not settled"),
        (256, "pass@1", "no material effect"),
        (256, "length", "not settled"),
    ],
)
def test_agreement_on_a_few_problems_does_not_exclude_a_difference(problems, endpoint, decision):
    found = types.SimpleNamespace(
        seeds=lambda arm: [0, 1],
        study=types.SimpleNamespace(
            registered=lambda: [Hypothesis("h", "c", "a", "b", endpoint, smallest_effect=0.03)]
        ),
    )
    tallies = {i: ProblemTally(4, 4, i % 5, 0, 40, 4.0) for i in range(problems)}
    results = {Unit(arm, seed): UnitResult(None, tallies, {}) for arm in "ab" for seed in (0, 1)}
    (test,) = hypothesis_tests(found, results)
    assert (test.difference, test.p_adjusted, test.decision) == (0.0, 1.0, decision)


def test_a_comparison_with_matched_samples_is_that_of_compare(whole):
    """For one seed, over the problems that have a value."""
    pair = [whole / "runs" / arm / "1" for arm in ("plain", "shaped")]
    results = {
        Unit(directory.parent.name, 1): UnitResult(None, read_problems(directory), {})
        for directory in pair
    }
    found = types.SimpleNamespace(
        seeds=lambda arm: [1],
        study=types.SimpleNamespace(
            registered=lambda: (
                [
                    Hypothesis(f"k{k}", "c", "shaped", "plain", f"pass@{k}", smallest_effect=0.03)
                    for k in (1, 2)
                ]
                + [Hypothesis("longer", "c", "shaped", "plain", "length", smallest_effect=1.0)]
            )
        ),
    )
    matched = matched_differences(found, results)
    assert set(matched) == {"k1", "k2"}
    compared = compare_runs(*(directory / "evaluate" for directory in pair))
    for i, controls in enumerate(matched.values()):
        for name, rows in (
            ("equal length", compared.equal_length),
            ("equal budget", compared.equal_budget),
        ):
            mine = controls[name]
            assert mine.seeds == 1
            if i < len(rows):  # `compare` leaves out budgets that few problems have samples for
                assert mine.problems == rows[i].problems
                assert (mine.against_mean, mine.arm_mean) == (rows[i].a, rows[i].b)
        assert compared.equal_length[i].problems and len(compared.equal_budget) > 0
    # Records of earlier versions have no lengths; without verdicts there is nothing to match.
    of_shaped = results[Unit("shaped", 1)].problems
    for changed in ({"lengths": []}, {"judged": 0, "lengths": [], "is_correct": []}):
        problems = {i: dataclasses.replace(t, **changed) for i, t in of_shaped.items()}
        other = results | {Unit("shaped", 1): UnitResult(None, problems, {})}
        controls = matched_differences(found, other).get("k1", {})
        assert [difference.problems for difference in controls.values()] == (
            [0, 0] if "judged" in changed else []
        )


def test_all_arms_are_compared_with_the_first_baseline_on_the_seeds_of_both():
    seeds = {"base": [0], "plain": [0, 1, 2], "shaped": [0, 1, 2], "few": [0, 2], "other": [7]}
    hypotheses = [
        Hypothesis("h", "c", "shaped", "plain", "pass@1", smallest_effect=0.03),
        Hypothesis("i", "c", "shaped", "base", "length", smallest_effect=1.0),
    ]
    found = types.SimpleNamespace(
        seeds=lambda arm: seeds[arm], study=types.SimpleNamespace(registered=lambda: hypotheses)
    )
    random = np.random.default_rng(0)
    correct = {
        Unit(arm, seed): random.integers(0, 9, size=20)
        for arm in seeds
        for seed in seeds[arm]
        if (arm, seed) != ("few", 2)  # not complete
    }
    results = {
        unit: UnitResult(
            None, {i: ProblemTally(8, 8, int(c), 0, 80 + int(c), 1.0) for i, c in enumerate(of)}, {}
        )
        for unit, of in correct.items()
    }
    differences = baseline_differences(found, results)
    assert list(differences) == ["base", "shaped", "few"]
    assert list(differences["few"]) == ["pass@1", "length"]
    of_seed = {unit: of.mean() / 8 for unit, of in correct.items()}
    mean = {arm: np.mean([of_seed[Unit(arm, s)] for s in (0, 1, 2)]) for arm in ("plain", "shaped")}
    shaped, base, few = (differences[arm]["pass@1"] for arm in ("shaped", "base", "few"))
    assert shaped.seeds == base.seeds == 3 and few.seeds == 1
    expected = {
        "shaped": mean["shaped"] - mean["plain"],
        "base": of_seed[Unit("base", 0)] - mean["plain"],
        "few": of_seed[Unit("few", 0)] - of_seed[Unit("plain", 0)],
    }
    for arm, value in expected.items():  # lengths are made to differ by as much
        for of_endpoint in differences[arm].values():
            np.testing.assert_allclose(of_endpoint.difference, value, rtol=0, atol=1e-12)
    assert np.isfinite(shaped.low) and math.isinf(few.low)
    # The registered test of the same two arms has the same difference.
    assert hypothesis_tests(found, results)[0].difference == shaped.difference
    # An arm with too few judged samples is left out here, but is an error for a hypothesis.
    nothing = UnitResult(None, {i: ProblemTally(8, 0, 0, 0, 80, 1.0) for i in range(20)}, {})
    assert list(baseline_differences(found, results | {Unit("few", 0): nothing})) == [
        "base",
        "shaped",
    ]
    with pytest.raises(ValueError, match=r"^h: no problem has enough judged samples for pass@1$"):
        hypothesis_tests(found, results | {Unit("shaped", seed): nothing for seed in (0, 1, 2)})


def result(arithmetic: float, truncated: float, **more: Any) -> UnitResult:
    rate = (0.1, 0.0, 0.2)
    fields = dict(
        problems=20,
        left_out=0,
        samples=2,
        pass_at_k={1: rate},
        pass_at_k_problems={1: 20},
        unjudged=0,
        avg_at_n=rate,
        maj_at_n=None,
        unique_answers=None,
        distinct={},
        repetition=rate,
        mean_length=(9.0, 8.0, 10.0),
        mean_entropy=(0.2, 0.1, 0.3),
        truncated=truncated,
        verdicts={},
        skill={"arithmetic": arithmetic},
    )
    return UnitResult(Evaluation(**fields | more), {}, {})


def test_tokens_of_dynamic_sampling_are_counted(whole, here):
    found = design(parse_config(StudyConfig, "study", study("--output", str(whole))[1:]))
    unit = next(unit for unit in found.units() if unit.arm == "plain")
    metrics = found.directory_of(unit) / "train" / "metrics.jsonl"
    before = analyze_study(found).results[unit]
    written = metrics.read_text()
    rows = [json.loads(line) for line in written.splitlines()]
    rows[0]["tokens_sampled"] = 1000.0
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = analyze_study(found).results[unit]
    metrics.write_text(written)
    of_first = rows[0]["length"] * found.train.rollout.prompts * found.train.rollout.group_size
    assert measures_of(before)["tokens"] - of_first + 1000 == measures_of(after)["tokens"]


def test_loss_of_skill_and_truncation_are_flagged_with_the_seeds():
    results = {
        Unit("base", 0): result(0.99, 0.05),
        Unit("plain", 0): result(0.98, 0.05),
        Unit("shaped", 0): result(0.96, 0.05),
        Unit("shaped", 1): result(0.99, 0.25),
    }
    found = find_flags(FlagsConfig(skill="arithmetic", skill_drop=0.02, truncated=0.2), results)
    assert list(found) == ["shaped"]
    skill, cut = found["shaped"]
    assert skill.startswith("arithmetic fell by up to 0.030 below") and "in seed 0:" in skill
    assert cut.startswith("up to 0.250 of the responses were truncated (limit 0.2) in seed 1:")
    assert find_flags(FlagsConfig(), results) == {}
    del results[Unit("base", 0)]
    found = find_flags(FlagsConfig(skill="arithmetic", truncated=0.5), results)
    assert found == {"base": ["skill: not checked, base is missing"]}
    results[Unit("base", 0)] = result(0.99, 0.05)
    (line,) = find_flags(FlagsConfig(skill="arithmetics"), results)["base"]
    assert line.startswith(
        "flags.skill: must be arithmetic, got 'arithmetics' (did you mean 'arithmetic'?)"
    )


def test_intervals_of_fractions_end_at_zero_and_one():
    values = [{"skill/answered": 0.97, "skill/turns": 0.9, "pass@1": 1.0}]
    values += [{"skill/answered": 1.0, "skill/turns": 1.1, "pass@1": 0.9}]
    found = mean_over_seeds(values)
    assert (found["skill/answered"][2], found["pass@1"][2]) == (1, 1)
    assert found["skill/turns"][2] > 1.1  # a count, no fraction


def test_intervals_over_seeds_are_students_t():
    found = mean_over_seeds([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}])
    mean, low, high, seeds = found["x"]
    assert (mean, seeds) == (3.0, 3)
    assert high - mean == pytest.approx(4.302653 * math.sqrt(7 / 3)) == mean - low
    assert math.isinf(mean_over_seeds([{"x": 1.0}])["x"][1])
    # A share is from 0 to 1, and so is its interval.
    seeds = [{"pass@1": 0.0, "truncated": 1.0}, {"pass@1": 0.5, "truncated": 0.75}]
    found = mean_over_seeds(seeds)
    assert found["pass@1"][:2] == (0.25, 0.0) and found["pass@1"][2] == 1.0
    assert found["truncated"][0] == 0.875 and found["truncated"][2] == 1.0


def test_a_measure_that_only_a_later_seed_has_is_kept():
    found = mean_over_seeds([{"x": 1.0}, {"x": 2.0, "y": 4.0}])
    assert found["x"][0] == 1.5 and found["x"][3] == 2
    assert found["y"][0] == 4.0 and found["y"][3] == 1


def test_measures_have_pass_at_k_only_where_every_judged_problem_counts():
    # One of 20 problems has a sample that was not judged: Pass@2 is over the other 19.
    of_all = {"pass_at_k": {1: (0.5, 0.4, 0.6), 2: (0.75, 0.6, 0.9)}}
    measures = measures_of(result(1.0, 0.0, **of_all, pass_at_k_problems={1: 20, 2: 19}))
    assert measures["pass@1"] == 0.5 and "pass@2" not in measures
    measures = measures_of(result(1.0, 0.0, **of_all, pass_at_k_problems={1: 20, 2: 20}))
    assert measures["pass@2"] == 0.75


def test_distinct_answers_are_a_control_of_tasks_with_answers():
    assert measures_of(result(1.0, 0.0, unique_answers=(0.25, 0.2, 0.3)))["unique_answers"] == 0.25
    assert "unique_answers" not in measures_of(result(1.0, 0.0))
