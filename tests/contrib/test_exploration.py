"""UEC-RL: prompts of which no completion is correct are sampled again, at a higher temperature."""

import numpy as np
import pytest
from run_records import assert_same_run, groups_of, lines_of
from tiny_runs import TRAIN, make_workspace, write_yaml

from entropy_rl.cli.main import main
from entropy_rl.experience.exploration import exploration_loss_mask
from entropy_rl.runs.jsonl import read_jsonl


def test_rows_of_the_loss_have_an_advantage_and_if_explored_one_that_is_not_negative():
    rewards = np.array(
        [[1, -1, -1], [1, -1, -1], [-1, -1, -1], [1, 1, 1], [1, -1, -1], [1, -1, 0]], "f4"
    )
    has_reward = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    explored = np.array([False, True, True, False, True, True])
    found = exploration_loss_mask(rewards.reshape(-1), has_reward.reshape(-1), explored, 3).reshape(
        -1, 3
    )
    assert found.astype(int).tolist() == [
        [1, 1, 1],
        [1, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
        [1, 0, 0],
        [1, 0, 1],
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same seed without exploration and with it, once at a stretch and once resumed; then in
    rounds.
    """
    workspace = make_workspace(tmp_path_factory.mktemp("exploration") / "workspace")
    settings = TRAIN | {
        "rollout": TRAIN["rollout"] | {"prompts": 8, "group_size": 2},
        "batching": TRAIN["batching"] | {"mini_batch_prompts": 8},
        "run": TRAIN["run"] | {"samples_per_step": 99},
    }
    write_yaml(workspace / "train.yaml", settings)
    hotter = ["--rollout.exploration.temperature", "1.5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr("entropy_rl.report.summary.write_curves", lambda directory: directory)  # slow
        for name, *more in (
            ("plain", "--steps", "1"),
            ("explored", *hotter, "--steps", "4"),
            ("resumed", *hotter, "--steps", "2"),
            ("resumed", *hotter, "--steps", "4"),
            ("rounds", *hotter, "--steps", "2", "--rollout.dynamic_sampling.max_rounds", "9"),
        ):
            assert main(["train", "--config", "train.yaml", "--run.directory", name, *more]) == 0
    return workspace


@pytest.mark.slow
def test_failed_groups_alone_are_replaced_and_the_others_are_those_of_a_plain_run(runs):
    plain = list(groups_of(lines_of(runs / "plain" / "samples.jsonl"), 2).values())
    explored = list(groups_of(lines_of(runs / "explored" / "samples.jsonl"), 2).values())[
        : len(plain)
    ]
    failed = 0
    for before, after in zip(plain, explored, strict=True):
        assert before[0]["problem"] == after[0]["problem"]
        if {row["verdict"] for row in before} == {"wrong"}:
            failed += 1
            assert [row["sample"] for row in after] == [2, 3]
            assert [row["tokens"] for row in after] != [row["tokens"] for row in before]
        else:
            assert [row["tokens"] for row in after] == [row["tokens"] for row in before]
    assert failed > 0
    first = lines_of(runs / "explored" / "metrics.jsonl")[0]
    assert first["groups_explored"] == failed / 8 == first["groups_none_correct"]
    assert first["correct"] == lines_of(runs / "plain" / "metrics.jsonl")[0]["correct"]


def test_tokens_of_the_loss_are_of_rows_with_an_advantage_and_if_explored_a_positive_one(
    runs,
):
    rows, solved = lines_of(runs / "explored" / "samples.jsonl"), 0
    for metrics in lines_of(runs / "explored" / "metrics.jsonl"):
        tokens = 0
        for (step, *_), group in groups_of(rows, 2).items():
            if step == metrics["step"] and len({row["verdict"] for row in group}) == 2:
                hot = group[0]["sample"] == 2
                tokens += sum(
                    row["length"] for row in group if not hot or row["verdict"] == "correct"
                )
                solved += hot
        assert metrics["tokens"] == tokens
    assert solved > 0


def test_the_speed_of_the_judge_counts_the_completions_of_explorations(runs):
    for metrics in read_jsonl(runs / "explored" / "metrics.jsonl"):
        judged = metrics["time/verdicts_per_second"] * metrics["time/verdicts"]
        assert round(judged) == 16 + 2 * 8 * metrics["groups_explored"]


def test_the_share_of_waiting_for_verdicts_is_that_of_the_step(runs):
    for name, waited in (("plain", "waiting_for_verdicts"), ("explored", "verdicts")):
        for metrics in read_jsonl(runs / name / "metrics.jsonl"):
            share = metrics[f"time/{waited}"] / metrics["time/step"]
            assert metrics["time/share_waiting_for_verdicts"] == pytest.approx(share)


def test_a_run_that_explores_goes_on_from_a_checkpoint_as_if_nothing_had_happened(runs):
    assert_same_run(runs / "explored", runs / "resumed", 4)


def test_in_rounds_a_group_that_exploration_has_solved_is_kept(runs):
    groups = groups_of(lines_of(runs / "rounds" / "samples.jsonl"), 2)
    assert len(groups) == 16 and all(
        len({row["verdict"] for row in rows}) == 2 for rows in groups.values()
    )
    assert {(rows[0]["sample"] // 2) % 2 for rows in groups.values()} == {
        0,
        1,
    }  # the odd ones are explored
    assert all(row["explored_solved"] > 0 for row in lines_of(runs / "rounds" / "metrics.jsonl"))


@pytest.mark.parametrize(
    "more, line",
    [
        (
            ["--rollout.exploration.temperature", "1"],
            "rollout.exploration.temperature: must be > rollout.temperature (1.0), got 1.0",
        ),
        (
            ["--rollout.exploration.temperature", "1.2", "--rollout.group_size", "1"],
            "rollout.exploration: must be null if rollout.group_size is 1, because a group of one "
            "has no contrast, got ExplorationConfig",
        ),
        (
            ["--rollout.exploration.temperature", "1.2", "--old_log_probs", "sampler"],
            "old_log_probs: must be trainer with rollout.exploration, which samples at "
            "another temperature, got 'sampler'",
        ),
    ],
)
def test_a_setting_that_cannot_work_is_refused_in_a_line(runs, monkeypatch, capsys, more, line):
    monkeypatch.chdir(runs)
    assert main(["train", "--config", "train.yaml", "--run.directory", "nowhere", *more]) == 2
    assert line in capsys.readouterr().err
