"""Runs on an environment: killed, they go on to the bit; eight devices see the same episodes."""

import contextlib
import json
import signal

import numpy as np
import pytest
from run_records import assert_same_run, lines_of, metrics_of
from tiny_runs import TRAIN, run, run_two, write_yaml

from entropy_rl.cli.main import main

# An environment of a user's own. Half of all turns end the episode, with a hash as the verdict.
DICE = """
import os
import zlib

import luck  # ends the process where the environment says so
from entropy_rl.tasks import Problem
from entropy_rl.tasks.countdown import Countdown
from entropy_rl.tasks.environments import Done, Observation


class Dice:
    def __init__(self, crash=False):
        self.crash = crash

    def problems(self, split):
        return Countdown(counts={"train": 16, "test": 4}).problems(split)

    def reset(self, problem, seed):
        self.seed, self.turns = seed, 0

    def step(self, action):
        self.turns += 1
        coins = zlib.crc32(f"{self.seed} {self.turns} {action}".encode())
        if self.crash and coins % 5 == 0:
            raise RuntimeError("a crash")
        if coins % 2:
            return Done(coins % 3 == 0)
        return Observation(f"wait {coins % 50} : {self.turns}", reward=coins % 4 / 4)
"""
STEPS = 4
EVALUATION = {"split": "test", "samples": 4, "max_new_tokens": 32, "problems": 3}


@pytest.fixture(scope="module")
def config(workspace):
    (workspace / "dice.py").write_text(DICE)
    episodes = {"max_turns": 3, "max_turn_tokens": 5}
    changes = {
        "task": {"name": "dice:Dice", "episodes": episodes},
        "rollout": TRAIN["rollout"] | {"max_new_tokens": 32},
        "steps": STEPS,
        "decoding": {"chunk_steps": 4},
        "evaluation": EVALUATION,
    }
    return write_yaml(workspace / "episodes.yaml", TRAIN | changes)


def train(directory, *more):
    return ["train", "--config", "episodes.yaml", "--run.directory", directory, *more]


@pytest.fixture(scope="module")
def whole(workspace, config):
    with contextlib.chdir(workspace):
        assert main(train("whole")) == 0
    return workspace / "whole"


def test_samples_show_the_turns_and_what_was_answered(whole):
    rows = lines_of(whole / "samples.jsonl")
    turns = [1 + len(row.get("observations", [])) for row in rows]
    assert set(turns) == {1, 2, 3}
    reasons = {row["finish_reason"] for row in rows}
    assert {"done", "turns"} <= reasons <= {"done", "turns", "length"}
    for row in rows:
        assert len(row["tokens"]) == len(row["log_probs"]) == row["length"]
        for after, text in row.get("observations", []):
            assert 0 < after < row["length"] and text.startswith("wait ")
    metrics = lines_of(whole / "metrics.jsonl")
    assert all(row["grad_norm"] > 0 and row["logprob_diff"] < 1e-4 for row in metrics)
    result = json.loads((whole / "evaluations" / str(STEPS) / "evaluation.json").read_text())
    assert result["pass_at_k"]
    evaluated = lines_of(whole / "evaluations" / str(STEPS) / "samples.jsonl")
    # The rewards of turns are part of the grade.
    assert {row["graded"] % 0.25 for row in evaluated if "graded" in row} == {0}
    assert len({row.get("graded") for row in evaluated}) > 2


def test_an_evaluation_takes_task_and_limits_from_the_run(whole, workspace, here):
    options = [f"--evaluation.{name}={value}" for name, value in EVALUATION.items()]
    own = ["--max_prompt_tokens", "16", "--seed", "0", "--output", "evaluated"]
    assert main(["evaluate", "--model.path", "whole", *own, *options]) == 0
    of_run = lines_of(whole / "evaluations" / str(STEPS) / "samples.jsonl")
    assert lines_of(workspace / "evaluated" / "samples.jsonl") == of_run


def test_a_run_that_was_ended_early_goes_on_to_the_bit(whole, workspace, here, capsys):
    for steps in ("2", "4"):
        assert main(train("resumed", "--steps", steps)) == 0
    assert "resuming resumed after step 2 of 4" in capsys.readouterr().err
    assert_same_run(workspace / "resumed", whole, STEPS)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_bit(whole, workspace, here, capsys):
    moment = {"DIE_WHERE_IT_EXISTS": "killed/checkpoints/4.*tmp*"}
    killed = run(workspace, *train("killed"), env=moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main(train("killed")) == 0
    assert "resuming killed after step 2 of 4" in capsys.readouterr().err
    assert_same_run(workspace / "killed", whole, STEPS)


@pytest.mark.slow
def test_episodes_are_the_same_in_fewer_slots_and_on_eight_devices(whole, workspace, here):
    steps = ["--steps", "1", "--run.checkpoint_every", "1"]
    assert main(train("slots", *steps, "--decoding.slots", "5")) == 0
    assert main(train("mesh", *steps, "--mesh.fsdp", "4", "--mesh.data", "2")) == 0
    first = [row for row in lines_of(whole / "samples.jsonl") if row["step"] == 1]
    for name in ("slots", "mesh"):
        rows = lines_of(workspace / name / "samples.jsonl")
        for row, other in zip(rows, first, strict=True):
            for field in ("problem", "sample", "tokens", "verdict", "finish_reason"):
                assert row[field] == other[field], (name, field)


@pytest.mark.slow
def test_two_processes_play_the_episodes_of_one(whole, workspace, here):
    two = train("two", "--steps", "2", "--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    for process in run_two(workspace, *two):
        assert process.returncode == 0, process.stderr
    metrics = [metrics_of(directory)[:2] for directory in (workspace / "two", whole)]
    np.testing.assert_allclose(*metrics, rtol=1e-4)
    # The first process records its own episodes.
    rows = [lines_of(directory / "samples.jsonl") for directory in (workspace / "two", whole)]
    names = ("step", "problem", "sample", "tokens", "observations", "verdict", "finish_reason")
    two, one = ([[row.get(name) for name in names] for row in part] for part in rows)
    assert two and all(row in one for row in two)


def test_an_episode_whose_environment_crashes_has_no_reward_and_ends_nothing(workspace, here):
    more = ["--steps", "1", "--task.args.crash", "true", "--run.checkpoint_every", "1"]
    assert main(train("crash", *more)) == 0
    (row,) = lines_of(workspace / "crash" / "metrics.jsonl")
    assert 0 < row["verdict/crash"] < 1


def test_settings_that_cannot_work_are_refused(workspace, config, refused):
    line = refused(*train("r1", "--decoding.chunk_steps", "null"))
    assert line.startswith("decoding.chunk_steps: must be a number for a task with episodes")
    line = refused(*train("r2", "--task.name", "luck:Luck"))
    assert line.startswith("task.episodes: must be null for a task without")
    line = refused(*train("r4", "--rewards", "[{name: part, part: x}]"))
    assert line.startswith("rewards[0].missing: must be a number with a task of several turns")
    critic = ["--critic", "{learning_rate: 0.1}", "--advantage"]
    line = refused(*train("r5", *critic, "[{name: group_normalize}, {name: gae}]"))
    assert line.startswith("advantage[0]: must be a transform that only shifts the rewards")
    line = refused(*train("r3", "--task.episodes.max_turns", "0"))
    assert line.startswith("task.episodes.max_turns: must be")
