"""Runs with a curriculum go on from a checkpoint with the same problems."""

import contextlib
import json

import pytest
from run_records import assert_same_run, lines_of
from tiny_runs import TRAIN, write_yaml

from entropy_rl.cli.main import main

TASK = """
import dataclasses

from luck import Luck


class Two(Luck):
    def problems(self, split):
        return [
            dataclasses.replace(p, source="even" if p.id % 2 == 0 else "odd")
            for p in super().problems(split)
        ]
"""
STEPS = 4


def train(name, directory, *more):
    return ["train", "--config", f"{name}.yaml", "--run.directory", directory, *more]


@pytest.fixture(
    scope="module", params=[pytest.param("learnability", marks=pytest.mark.slow), "replay_failed"]
)
def whole(request, workspace):
    (workspace / "two.py").write_text(TASK)
    task = {"name": "two:Two", "args": TRAIN["task"]["args"]}
    curriculum = {"curriculum": {"name": request.param}}
    config = TRAIN | {"task": task, "steps": STEPS} | curriculum
    config["rollout"] = config["rollout"] | {"group_size": 2}
    config["run"] = config["run"] | {"samples_per_step": 99}
    write_yaml(workspace / f"{request.param}.yaml", config)
    with contextlib.chdir(workspace):
        assert main(train(request.param, request.param)) == 0
    return workspace / request.param


def problems_of(run):
    rows = lines_of(run / "samples.jsonl")
    return [[r["problem"] for r in rows if r["step"] == step] for step in range(1, STEPS + 1)]


def test_a_run_goes_on_with_the_same_problems(whole, workspace, here):
    name = whole.name
    for steps in ("2", "4"):
        assert main(train(name, f"{name}-resumed", "--steps", steps)) == 0
    assert_same_run(workspace / f"{name}-resumed", whole, STEPS)


@pytest.mark.slow
def test_eight_devices_see_the_same_problems(whole, workspace, here):
    name = whole.name
    assert main(train(name, f"{name}-mesh", "--mesh.fsdp", "2", "--mesh.data", "2")) == 0
    assert problems_of(workspace / f"{name}-mesh") == problems_of(whole)


def test_what_failed_comes_again_and_shares_are_metrics(whole):
    metrics = lines_of(whole / "metrics.jsonl")
    if whole.name == "learnability":
        for row in metrics:
            shares = [row[f"curriculum/share/{name}"] for name in ("even", "odd")]
            assert sum(shares) == pytest.approx(1, abs=1e-6)
        return
    rows, waiting = lines_of(whole / "samples.jsonl"), set()
    for step in range(1, STEPS):
        verdicts: dict[int, set] = {}
        for row in rows:
            if row["step"] == step:
                verdicts.setdefault(row["problem"], set()).add(row["verdict"])
        failed = {problem for problem, found in verdicts.items() if found == {"wrong"}}
        waiting |= failed
        again = waiting & set(problems_of(whole)[step])
        # A quarter of four prompts, if any problem waits.
        assert metrics[step]["curriculum/replayed"] == min(1, len(waiting)) <= len(again)
        waiting -= again


def test_a_curriculum_is_refused_with_dynamic_sampling(workspace, whole, refused):
    line = refused(*train(whole.name, "no", "--rollout.dynamic_sampling.max_rounds", "3"))
    assert line.startswith("curriculum: must be null with rollout.dynamic_sampling")
    config = json.dumps({"name": "replay_faild"})
    line = refused(*train(whole.name, "no", "--curriculum", config))
    assert line.startswith("curriculum.name: ") and "replay_failed" in line
