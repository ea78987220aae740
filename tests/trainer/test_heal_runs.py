"""Runs on two domains: HEAL sees the whole rollout, on any mesh, and after a resumption."""

import contextlib

import numpy as np
import pytest
from run_records import assert_same_run, lines_of
from tiny_runs import TRAIN, write_yaml

from entropy_rl.cli.main import main

STEPS = 4
G = TRAIN["rollout"]["group_size"]


def config_of(name):
    return TRAIN | {
        "task": {
            "name": "mixture",
            "args": {"tasks": {name: TRAIN["task"] for name in ("target", "general")}},
        },
        "advantage": [
            {"name": "heal", "general": name, "min_tokens": 3},
            {"name": "group_normalize"},
        ],
        "steps": STEPS,
        "run": TRAIN["run"] | {"samples_per_step": 99},
    }


def train(directory, *more):
    return ["train", "--config", "heal.yaml", "--run.directory", directory, *more]


@pytest.fixture(scope="module")
def whole(workspace):
    write_yaml(workspace / "heal.yaml", config_of("general"))
    with contextlib.chdir(workspace):
        assert main(train("whole")) == 0
    return workspace / "whole"


def distance(one, other):
    length = max(len(one), len(other))
    p, q = ([x[t * len(x) // length] for t in range(length)] for x in (one, other))
    p, q = (np.exp(np.array(x)) / np.exp(np.array(x)).sum() for x in (p, q))
    return float((p * np.log(p / q)).sum())


def test_the_reward_of_a_step_is_that_of_a_loop_over_its_samples(whole):
    added = 0
    for step in range(1, STEPS + 1):
        rows = [row for row in lines_of(whole / "samples.jsonl") if row["step"] == step]
        domains = [row["source"] for row in rows]
        rewards = np.array([1.0 if row["verdict"] == "correct" else -1.0 for row in rows])
        for i, row in enumerate(rows):
            to = {True: [np.inf], False: [np.inf]}
            for j, other in enumerate(rows):
                if j != i:
                    found = distance(row["entropy"], other["entropy"])
                    to[domains[i] == domains[j]].append(found)
            closer = row["length"] > 3 and min(to[False]) < min(to[True]) < np.inf
            rewards[i] += closer
            added += closer
        groups = rewards.reshape(-1, G)
        std = groups.std(1, ddof=1, keepdims=True)
        wanted = (groups - groups.mean(1, keepdims=True)) / np.where(std > 0, std + 1e-6, 1)
        # Advantages are recorded for the first of the two mini-batches.
        recorded = [row["advantage_before"] for row in rows if row["advantage_before"]]
        assert len(recorded) == len(rows) // 2
        np.testing.assert_allclose(
            np.array(recorded)[:, 0], wanted.reshape(-1)[: len(recorded)], atol=2e-4
        )
    assert added > 0


def test_a_resumed_run_is_the_same_to_the_bit(whole, workspace, here):
    for steps in ("2", "4"):
        assert main(train("resumed", "--steps", steps)) == 0
    assert_same_run(workspace / "resumed", whole, STEPS)


@pytest.mark.slow
def test_eight_devices_add_the_same_rewards(whole, workspace, here):
    more = ["--steps", "1", "--run.checkpoint_every", "1", "--mesh.fsdp", "2", "--mesh.data", "2"]
    assert main(train("mesh", *more)) == 0
    rows = lines_of(workspace / "mesh" / "samples.jsonl")
    first = [row for row in lines_of(whole / "samples.jsonl") if row["step"] == 1]
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in first]
    for row, other in zip(rows, first, strict=True):
        if row["advantage_before"]:
            np.testing.assert_allclose(
                row["advantage_before"], other["advantage_before"], atol=1e-5
            )


def test_a_domain_that_no_problem_has_is_refused(workspace, whole, refused):
    write_yaml(workspace / "no.yaml", config_of("genral"))
    line = refused("train", "--config", "no.yaml", "--run.directory", "no")
    assert line.startswith("advantage[0]: must name a source of some of the problems and not of")
    assert line.endswith("got 'genral' with 0 of 32; their sources are general, target")
    task = {"name": "luck:Luck", "args": TRAIN["task"]["args"]}
    write_yaml(workspace / "no.yaml", config_of("general") | {"task": task})
    line = refused("train", "--config", "no.yaml", "--run.directory", "no")
    assert line.endswith("got 'general' with 0 of 16; their sources are empty")
