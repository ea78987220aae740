"""Runs with graded and several rewards: what is logged and recorded, and what reads the rewards."""

import json
from pathlib import Path

import numpy as np
import pytest
from run_records import assert_same_run, groups_of, lines_of
from tiny_runs import TRAIN, make_workspace, write_yaml

from entropy_rl.cli.main import main

GRADED = '''
import zlib
from entropy_rl.tasks import Judgement, Verdict
from entropy_rl.tasks.countdown import Countdown


def coin(text, sides):
    return zlib.crc32(text.encode()) % sides


class Graded(Countdown):
    """The grade is a hash of the completion, from 0 to 1; some completions are not judged."""

    def judge(self, problems, completions):
        return [None if coin(text, 11) == 0 else coin(text, 5) / 4 for text in completions]


class WithParts(Countdown):
    def judge(self, problems, completions):
        verdicts = [Verdict.WRONG, Verdict.CORRECT]
        return [
            Judgement(verdicts[coin(text, 2)], coin(text, 5) / 4, {"words": len(text.split())})
            for text in completions
        ]


def even(completion_ids):
    return [len(ids) % 2 for ids in completion_ids]
'''
REWARDS = [
    {"name": "graded"},
    {"name": "part", "part": "words", "weight": 0.1},
    {"name": "graded:even", "weight": 0.5},
    {"name": "repetition", "n": 1, "weight": 0},
]
SETTINGS = TRAIN | {
    "steps": 3,
    "task": {"name": "graded:WithParts", "args": TRAIN["task"]["args"]},
    "rewards": REWARDS,
    "advantage": [{"name": "gdpo"}, {"name": "shape_by_entropy"}],
    "replay": {"name": "uec_replay", "rollouts": 1, "every": 1, "above": 0.5},
    "run": TRAIN["run"] | {"samples_per_step": 99},
    "evaluation": {"split": "test", "samples": 2, "max_new_tokens": 8, "problems": 3},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """GDPO with replay at a stretch and resumed; graded rewards with dynamic sampling and a greedy
    baseline, and with exploration.
    """
    workspace = make_workspace(tmp_path_factory.mktemp("rewards") / "workspace")
    (workspace / "graded.py").write_text(GRADED)
    write_yaml(workspace / "several.yaml", SETTINGS)
    plain = SETTINGS | {"task": SETTINGS["task"] | {"name": "graded:Graded"}, "steps": 1}
    for name in ("rewards", "replay", "evaluation"):
        del plain[name]
    rounds = plain["rollout"] | {"dynamic_sampling": {"max_rounds": 2, "at_limit": "train"}}
    write_yaml(
        workspace / "dynamic.yaml", plain | {"advantage": [{"name": "remax"}], "rollout": rounds}
    )
    hotter = plain["rollout"] | {"exploration": {"temperature": 1.5}, "group_size": 2}
    write_yaml(
        workspace / "explored.yaml", plain | {"advantage": [{"name": "rloo"}], "rollout": hotter}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr("entropy_rl.report.summary.write_curves", lambda directory: directory)  # slow
        for config, name, *more in (
            ("several", "several"),
            ("several", "resumed", "--steps", "2"),
            ("several", "resumed"),
            ("dynamic", "dynamic"),
            ("explored", "explored"),
        ):
            arguments = ["--config", f"{config}.yaml", "--run.directory", name]
            assert main(["train", *arguments, *more]) == 0
    return workspace


def test_a_resumed_run_with_several_rewards_and_a_replay_buffer_is_the_same(runs):
    assert_same_run(runs / "several", runs / "resumed", step=3)


def test_each_reward_is_recorded_by_its_label_and_the_reward_is_their_weighted_sum(runs):
    for row in lines_of(runs / "several" / "samples.jsonl"):
        assert list(row["rewards"]) == ["graded", "words", "even", "repetition"]
        graded, words, even, repetition = row["rewards"].values()
        assert words == len(row["completion"].split()) and even == row["length"] % 2
        assert row["reward"] == pytest.approx(graded + 0.1 * words + 0.5 * even, abs=1e-6)
        assert -1 < repetition <= 0


def test_metrics_are_the_means_and_deviations_of_what_is_recorded(runs):
    samples = groups_of_steps(runs / "several")
    for metrics in lines_of(runs / "several" / "metrics.jsonl"):
        rows = [row["rewards"] for row in samples[metrics["step"]]]
        for label in rows[0]:
            values = np.array([row[label] for row in rows])
            assert metrics[f"reward/{label}"] == pytest.approx(values.mean(), abs=1e-6)
            assert metrics[f"reward/{label}_std"] == pytest.approx(values.std(), abs=1e-6)
        assert metrics["without_reward"] == 0 and metrics["nonfinite_updates"] == 0
        assert metrics["replay/tokens"] > 0


def groups_of_steps(run: Path) -> dict[int, list[dict]]:
    steps: dict[int, list[dict]] = {}
    for row in lines_of(run / "samples.jsonl"):
        steps.setdefault(row["step"], []).append(row)
    return steps


def test_the_grade_of_a_task_is_the_reward_and_the_verdict_stays_its_own(runs):
    rows = lines_of(runs / "explored" / "samples.jsonl")
    judged = [row for row in rows if row["verdict"] != "not_judged"]
    assert {row["reward"] for row in judged} <= {0, 0.25, 0.5, 0.75, 1}
    assert len({row["reward"] for row in judged}) > 2
    assert all((row["verdict"] == "correct") == (row["reward"] == 1) for row in judged)
    assert all(row["reward"] is None for row in rows if row not in judged)
    (metrics,) = lines_of(runs / "explored" / "metrics.jsonl")
    assert not any(name.startswith("reward/") for name in metrics)


def test_exploration_takes_prompts_without_a_correct_completion_whatever_their_grades(runs):
    (metrics,) = lines_of(runs / "explored" / "metrics.jsonl")
    assert metrics["groups_explored"] == pytest.approx(metrics["groups_none_correct"])
    groups = groups_of(lines_of(runs / "explored" / "samples.jsonl"), 2).values()
    assert any(len({row["reward"] for row in group} - {None}) == 2 for group in groups)


def test_dynamic_sampling_keeps_groups_whose_grades_differ(runs):
    (metrics,) = lines_of(runs / "dynamic" / "metrics.jsonl")
    groups = groups_of(lines_of(runs / "dynamic" / "samples.jsonl"), 4).values()
    for group in groups:
        rewards = {row["reward"] for row in group} - {None}
        assert len(rewards) != 1
    # Grades between 0 and 1 are a contrast, though no verdict differs.
    assert any(not any(row["verdict"] == "correct" for row in group) for group in groups)
    assert 0 <= metrics["greedy_reward"] <= 1


def test_an_evaluation_records_grades_and_compare_tests_them(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    (row, *_) = lines_of(next(Path("several").glob("evaluations/*3/samples.jsonl")))
    assert set(row["parts"]) == {"words"} and 0 <= row["graded"] <= 1
    found = json.loads(next(Path("several").glob("evaluations/*3/evaluation.json")).read_text())
    assert set(found["grades"]) == {"graded", "words"}
    assert main(["compare", "several", "resumed", "--output", "compared"]) == 0
    assert "Grades: means of the task's graded reward" in capsys.readouterr().out
    table = json.loads(Path("compared/comparison.json").read_text())["grades"]
    assert [(r["name"], r["difference"]) for r in table] == [("graded", 0), ("words", 0)]


def test_the_report_shows_every_reward(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert main(["report", "several", "--output", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "mean reward words" in page and '"even":' in page


def test_wrong_rewards_are_refused_before_anything_is_written(here, refused):
    write_yaml(here / "wrong.yaml", SETTINGS | {"rewards": [{"name": "fromat"}]})
    line = refused("train", "--config", "wrong.yaml")
    assert "rewards[0].name: must be one of correct, graded" in line and "'format'" in line
    write_yaml(here / "wrong.yaml", SETTINGS | {"reward": {"correct": 1.0, "wrong": 0.0}})
    assert "reward: must be absent with rewards" in refused("train", "--config", "wrong.yaml")
    write_yaml(here / "wrong.yaml", TRAIN | {"rewards": [{"name": "correct", "weight": 0}]})
    assert "at least one weight other than 0" in refused("train", "--config", "wrong.yaml")
    write_yaml(here / "wrong.yaml", TRAIN | {"advantage": [{"name": "gdpo"}]})
    assert "gdpo.reward_weights: must be weights by label" in refused(
        "train", "--config", "wrong.yaml"
    )
