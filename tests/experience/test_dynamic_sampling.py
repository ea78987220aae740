"""Dynamic sampling: which groups are taken, wherever they were sampled, and runs that sample in
rounds.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from run_records import assert_same_run, groups_of, lines_of, state_of
from tiny_runs import TRAIN, make_workspace, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.experience.dynamic_sampling import choose
from entropy_rl.experience.experience import has_contrast
from entropy_rl.experience.prompts import own_places

G = TRAIN["rollout"]["group_size"]


# --- which groups
# ------------------------------------------------------------------------------------------


def test_a_group_has_contrast_if_two_judged_rewards_differ():
    rewards = np.array(
        [[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 1]], "f4"
    )
    has_reward = np.array(
        [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0]], bool
    )
    expected = [False, False, True, False, False, True, False]
    assert has_contrast(rewards.reshape(-1), has_reward.reshape(-1), 3).tolist() == expected


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_any_number_of_hosts_trains_on_the_same_groups_in_the_same_updates(updates):
    rng, wanted = np.random.default_rng(0), 8
    dropped = rng.random((3, wanted)) < 0.5
    in_order = sorted(itertools.product(range(3), range(wanted)), key=lambda at: (dropped[at], at))[
        :wanted
    ]
    for host_count in (1, 2):
        own = wanted // host_count
        contrast = ~dropped.reshape(3, host_count, own).transpose(1, 0, 2)
        host, number, is_kept = choose(contrast, wanted)
        taken = zip((number // own).tolist(), (host * own + number % own).tolist(), strict=True)
        assert list(taken) == in_order
        assert is_kept.tolist() == [not dropped[at] for at in in_order]
        for update in range(updates):
            of_update = wanted // updates
            parts = [own_places(wanted, host, host_count, updates) for host in range(host_count)]
            step = of_update // host_count
            joined = [k for part in parts for k in part[update * step : (update + 1) * step]]
            assert joined == list(range(update * of_update, (update + 1) * of_update))


# --- runs
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    workspace = make_workspace(tmp_path_factory.mktemp("rounds") / "workspace")
    rollout = TRAIN["rollout"] | {"dynamic_sampling": {"max_rounds": 10}}
    run = TRAIN["run"] | {"samples_per_step": 100}
    # With this seed, a group of the first round has no contrast.
    write_yaml(workspace / "dynamic.yaml", TRAIN | {"seed": 6, "rollout": rollout, "run": run})
    return workspace


def train(name: str, *more: str, config: str = "dynamic.yaml") -> int:
    return main(["train", "--config", config, "--run.directory", name, *more])


@pytest.fixture(scope="module")
def whole(workspace) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr("entropy_rl.report.summary.write_curves", lambda directory: directory)
        assert train("whole") == 0
    return workspace / "whole"


def test_every_group_that_is_trained_on_has_contrast_and_every_step_has_all_its_groups(whole):
    groups = groups_of(lines_of(whole / "samples.jsonl"), G)
    assert len(groups) == TRAIN["steps"] * TRAIN["rollout"]["prompts"]
    for rows in groups.values():
        assert len(rows) == G and len({row["verdict"] for row in rows}) == 2
        assert {row["reward"] for row in rows} in (
            {-1, 1},
            {None},
        )  # of a later update, none is recorded


def test_the_groups_are_those_of_a_plain_rollout_that_have_contrast_and_the_metrics_count_all(
    whole, here
):
    plain = ["--rollout.dynamic_sampling", "null", "--steps", "1"]
    assert train("plain", *plain) == 0
    drawn = groups_of(lines_of(here / "plain" / "samples.jsonl"), G)
    kept = [rows for rows in drawn.values() if len({row["verdict"] for row in rows}) == 2]
    first = [
        rows
        for (step, *_), rows in groups_of(lines_of(whole / "samples.jsonl"), G).items()
        if step == 1
    ]
    found = [[row["tokens"] for row in rows] for rows in first[: len(kept)]]
    assert 0 < len(kept) < 4 and found == [[row["tokens"] for row in rows] for rows in kept]
    metrics = lines_of(whole / "metrics.jsonl")
    assert metrics[0]["prompts_sampled"] > 4 and metrics[0]["tokens_sampled"] > metrics[0]["tokens"]
    for row in metrics:
        assert row["prompts_sampled"] * (1 - row["groups_dropped"]) >= 4
        assert row["groups_dropped"] == row["groups_all_correct"] + row["groups_none_correct"]
        assert row["tokens_sampled"] == row["length"] * row["prompts_sampled"] * G


def test_the_prompts_of_all_rounds_are_consumed_in_order_and_the_cursor_is_saved(whole):
    rounds = sum(row["prompts_sampled"] for row in lines_of(whole / "metrics.jsonl")) / 4
    assert rounds > TRAIN["steps"] and state_of(whole)["rounds"] == rounds


def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_never_stopped(whole, here):
    assert train("resumed", "--steps", "3") == 0
    assert train("resumed") == 0
    assert_same_run(whole, here / "resumed")


def test_at_the_limit_a_run_ends_with_a_line_and_goes_on_with_a_higher_one(whole, here, capsys):
    assert train("limited", "--rollout.dynamic_sampling.max_rounds", "1") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    start = (
        "entropy-rl train: rollout.dynamic_sampling.max_rounds: must be larger, got 1: in these "
        "rounds of 4 prompts, only "
    )
    assert line.startswith(start)
    assert line.endswith("the same command with a larger number resumes the run")
    assert train("limited") == 0
    assert_same_run(whole, here / "limited")


def test_at_the_limit_a_run_can_train_on_the_groups_there_are_and_no_other_row_counts(here):
    limits = {"max_rounds": 1, "at_limit": "train"}
    limits = [
        "--rollout.dynamic_sampling",
        json.dumps(limits),
        "--batching.mini_batch_prompts",
        "4",
    ]
    assert train("short", *limits, "--steps", "3") == 0
    rows = lines_of(here / "short" / "samples.jsonl")
    for metrics in lines_of(here / "short" / "metrics.jsonl"):
        groups = [
            rows for (step, *_), rows in groups_of(rows, G).items() if step == metrics["step"]
        ]
        kept = [rows for rows in groups if len({row["verdict"] for row in rows}) == 2]
        assert len(groups) == 4 and metrics["prompts_sampled"] == 4
        assert metrics["groups_dropped"] == 1 - len(kept) / 4
        assert metrics["tokens"] == sum(row["length"] for rows in kept for row in rows)
        assert all(row["reward"] is None for rows in groups if rows not in kept for row in rows)


@pytest.mark.parametrize("more", [[], ["--rollout.dynamic_sampling", "{}"]])
def test_a_judge_that_crashes_on_everything_ends_a_run_in_one_line(here, capsys, more):
    (here / "broken.py").write_text(
        "from luck import Luck\nfrom entropy_rl.tasks import Verdict\n\n\n"
        "class Broken(Luck):\n    def judge(self, problems, completions):\n"
        "        return [Verdict.CRASH for _ in completions]\n"
    )
    arguments = ["--task.name", "broken:Broken", "--run.directory", f"broken{len(more)}", *more]
    assert main(["train", "--config", "train.yaml", *arguments]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "entropy-rl train: none of 16 completions was judged: 16 crash"


def test_a_group_of_one_has_no_contrast_and_is_refused_in_a_line(here, capsys):
    assert train("one", "--rollout.group_size", "1", "--advantage", '[{"name": "whiten"}]') == 2
    assert "rollout.dynamic_sampling: " in capsys.readouterr().err
