"""Two real processes of four devices are one; a signal to one stops both, and a lost one ends the
other.
"""

import json
import os
import re
import socket

import numpy as np
import pytest
from run_records import lines_of, metrics_of
from tiny_runs import EVALUATION, ROOT, TRAIN, finish, run_two, start, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.runs.lock import one_writer

STEPS = 4
# Eight devices; in the rollout of a process two tensor groups share its rows.
MESH = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
SETTINGS = [x for name, value in EVALUATION.items() for x in (f"--evaluation.{name}", str(value))]

# The method that the variable FAILS names raises in processes that have it.
FAILS = """
import os
from luck import Luck


class Fails(Luck):
    def problems(self, split):
        if os.environ.get("FAILS") == "problems":
            raise ValueError("not here")
        return super().problems(split)

    def judge(self, problems, completions):
        if os.environ.get("FAILS") == "judge":
            raise TypeError("not here")
        return super().judge(problems, completions)
"""


def train(directory, *more):
    own = ["--run.directory", directory, "--steps", str(STEPS)]
    return ["train", "--config", "train.yaml", *own, *SETTINGS, *more]


def samples_of(directory):
    return [
        json.loads(line)["tokens"]
        for line in (directory / "samples.jsonl").read_text().splitlines()
    ]


@pytest.mark.slow
def test_two_processes_that_one_signal_stops_go_on_as_one_process_and_end_as_one(
    workspace, here, capsys
):
    assert main(train("one")) == 0
    first, second = run_two(workspace, *train("two", *MESH), SIGNAL_AT_CALL="SIGTERM:3")
    for process in (first, second):
        assert process.returncode == 143, process.stderr
        line = process.stderr.splitlines()[-1]
        assert line == "entropy-rl train: stopped after step 2; the same command goes on from there"
    assert len(second.stderr.splitlines()) == 1  # the first one speaks for both
    assert len(metrics_of(workspace / "two")) == 2

    assert main(train("two", "--mesh.fsdp", "1")) == 0
    assert "resuming two after step 2 of 4" in capsys.readouterr().err
    np.testing.assert_allclose(
        metrics_of(workspace / "two"), metrics_of(workspace / "one"), rtol=1e-4
    )
    assert samples_of(workspace / "two") == samples_of(workspace / "one")
    for step in (0, STEPS):
        one, two = (workspace / name / "evaluations" / str(step) for name in ("one", "two"))
        results = [
            json.loads((directory / "evaluation.json").read_text()) for directory in (one, two)
        ]
        assert results[0]["pass_at_k"] == results[1]["pass_at_k"]


def test_two_processes_are_one_writer_and_both_are_refused_beside_another(workspace, here):
    (here / "held").mkdir()
    with one_writer(here / "held" / "lock", "a"):
        for process in run_two(workspace, *train("held", *MESH)):
            assert process.returncode == 2
            assert process.stderr == (
                "entropy-rl train: run.directory: held: must have one writer, got a second "
                f"process; process {os.getpid()} on {socket.gethostname()} writes to it\n"
            )
    assert not list((here / "held").iterdir())


@pytest.mark.slow
def test_two_processes_decide_alike_which_groups_they_train_on(workspace, here):
    dynamic = ["train", "--config", "train.yaml", "--seed", "6", "--steps", "3"]
    dynamic += [
        "--rollout.dynamic_sampling.max_rounds",
        "9",
        "--rollout.exploration.temperature",
        "1.5",
    ]
    dynamic += ["--rollout.group_size", "2", "--run.samples_per_step", "99", "--run.directory"]
    assert main([*dynamic, "one-dynamic"]) == 0
    for process in run_two(workspace, *dynamic, "two-dynamic", *MESH):
        assert process.returncode == 0, process.stderr
    one, two = (workspace / name for name in ("one-dynamic", "two-dynamic"))
    np.testing.assert_allclose(metrics_of(two), metrics_of(one), rtol=1e-4)
    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["prompts_sampled"] for row in rows) > 3 * TRAIN["rollout"]["prompts"]
    assert sum(row["groups_explored"] for row in rows) > 0
    # The first process records what it trains on: the first half of each of two updates.
    assert samples_of(two) == [
        tokens for i, tokens in enumerate(samples_of(one)) if i // 2 % 2 == 0
    ]


@pytest.mark.slow
def test_two_processes_learn_from_the_same_rows(workspace, here):
    pipo = {"name": "pipo", "window": 2}
    rules = {
        "advantage": [{"name": "remax"}],
        "loss": {"mask_truncated": True},
        "replay": pipo,
    }
    write_yaml(workspace / "rules.yaml", TRAIN | rules | {"steps": 4})
    command = ["train", "--config", "rules.yaml", "--run.directory"]
    assert main([*command, "one-rules"]) == 0
    for process in run_two(workspace, *command, "two-rules", *MESH):
        assert process.returncode == 0, process.stderr
    one, two = (workspace / f"{number}-rules" for number in ("one", "two"))
    np.testing.assert_allclose(metrics_of(two), metrics_of(one), rtol=1e-4)
    names = ("greedy_reward", "truncated", "replay_weight", "replay/tokens", "replay/grad_norm")
    numbers = [
        [row.get(n, 0) for n in names for row in lines_of(x / "metrics.jsonl")] for x in (one, two)
    ]
    np.testing.assert_allclose(*numbers, rtol=1e-4)
    assert all(any(row.get(name) for row in lines_of(two / "metrics.jsonl")) for name in names)


@pytest.mark.slow
def test_two_processes_evaluate_together_and_a_signal_to_one_stops_both(workspace, here):
    own = ["--task.name", "luck:Luck", "--task.args", "{counts: {test: 4}}", "--seed", "0"]
    more = ["--evaluation.rows_per_call", "1", "--output", "together"]
    command = ["evaluate", "--model.path", "model", *own, *SETTINGS, *more]
    for process in run_two(workspace, *command, SIGNAL_AT_CALL="SIGTERM:1"):
        assert process.returncode == 143, process.stderr
        line = process.stderr.splitlines()[-1]
        assert re.fullmatch(r"entropy-rl evaluate: stopped after \d of \d samples; .*", line)
    first, second = run_two(workspace, *command)
    for process in (first, second):
        assert process.returncode == 0, process.stderr
    assert first.stdout.endswith("everything is in together\n")
    assert "everything" not in second.stdout
    assert (here / "together" / "evaluation.json").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other_with_a_line(workspace):
    first, second = run_two(workspace, *train("lost", *MESH), SIGNAL_AT_CALL="SIGKILL:2")
    assert second.returncode == -9
    # Either a collective fails, or jax misses the signs of life and ends the process by itself.
    told = (
        "entropy-rl train: process 0 of 2 cannot go on: .*; "
        "if another process has ended, its log says why"
    )
    by_jax = "Terminating process because .* another task died"
    assert first.returncode in (1, -6), first.stderr
    assert re.search(told if first.returncode == 1 else by_jax, first.stderr)


@pytest.mark.parametrize(
    ("method", "code", "told"),
    [
        ("problems", 2, "entropy-rl train: task.name: Fails.problems: ValueError: not here\n"),
        pytest.param("judge", 1, "\nTypeError: not here\n", marks=pytest.mark.slow),
    ],
    ids=["line", "traceback"],
)
def test_a_process_that_fails_alone_ends_all_with_its_exit_code_at_once(
    workspace, method, code, told
):
    (workspace / "fails.py").write_text(FAILS)
    task = ["--task.name", "fails:Fails"]
    first, second = run_two(workspace, *train(f"fails_{method}"), *task, *MESH, FAILS=method)
    assert second.returncode == code, second.stderr
    assert second.stderr.endswith(told)
    assert ("Traceback" in second.stderr) == (method == "judge")
    assert first.returncode == code, first.stderr
    assert first.stderr.endswith(
        "entropy-rl: process 0 of 2 cannot go on: process 1 has ended with exit code "
        f"{code}; its log says why\n"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("127.0.0.1", "HOST:PORT,PROCESSES,INDEX"),
        ("127.0.0.1:1,2", "HOST:PORT,PROCESSES,INDEX"),
        ("127.0.0.1:1,2,two", "HOST:PORT,PROCESSES,INDEX"),
        ("127.0.0.1:,2,0", "HOST:PORT,PROCESSES,INDEX"),
        ("127.0.0.1:1,2,2", "an index from 0 to 1"),
        ("127.0.0.1:1,0,0", "at least 1 process"),
        ("127.0.0.1:99999,2,0", "a port from 1 to 65535"),
    ],
)
def test_a_mistyped_list_of_processes_is_refused_in_a_line(here, value, told, monkeypatch, capsys):
    monkeypatch.setenv("ENTROPY_RL_DISTRIBUTED", value)
    assert main(train("nowhere")) == 2
    error = capsys.readouterr().err
    assert error.startswith("entropy-rl train: ENTROPY_RL_DISTRIBUTED: must be ")
    assert told in error
    assert error.count("\n") == 1 and not (here / "nowhere").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["sft", "--config", "sft.yaml"],
        ["sample", "--model.path", "model", "--question", "3 4 5 6"],
        ["export", "--model", "run", "--output", "exported"],
        ["study", "--config", str(ROOT / "configs" / "study" / "tiny.yaml")],
    ],
    ids=lambda command: command[0],
)
def test_a_verb_of_one_process_refuses_to_be_one_of_several(here, command, monkeypatch, capsys):
    monkeypatch.setenv("ENTROPY_RL_DISTRIBUTED", "auto")
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"entropy-rl {command[0]}: ENTROPY_RL_DISTRIBUTED: must be unset, because {command[0]} "
        "runs in one process, got 'auto'\n"
    )


def test_auto_outside_of_a_cluster_names_the_variable(workspace):
    process = finish(start(workspace, *train("no"), env={"ENTROPY_RL_DISTRIBUTED": "auto"}))
    assert process.returncode == 2
    assert process.stderr == (
        "entropy-rl train: ENTROPY_RL_DISTRIBUTED: must be HOST:PORT,PROCESSES,INDEX where jax "
        "finds no cluster, got 'auto' (coordinator_address should be defined)\n"
    )
