"""A run with several rewards: what is logged and recorded, and that it resumes."""

import re
from pathlib import Path

import numpy as np
import pytest
from run_records import assert_same_run, lines_of
from tiny_runs import TRAIN, make_workspace, write_yaml

from entropy_rl.cli.main import main

GRADED = """
import zlib
from entropy_rl.tasks import Judgement, Verdict
from entropy_rl.tasks.countdown import Countdown


def coin(text, sides):
    return zlib.crc32(text.encode()) % sides


class WithParts(Countdown):
    def judge(self, problems, completions):
        verdicts = [Verdict.WRONG, Verdict.CORRECT]
        return [
            Judgement(verdicts[coin(text, 2)], coin(text, 5) / 4, {"words": len(text.split())})
            for text in completions
        ]


def nan(completions):
    return [float("nan") for text in completions]


def even(completion_ids):
    return [len(ids) % 2 for ids in completion_ids]
"""
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
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run with GDPO and replay, at a stretch and resumed."""
    workspace = make_workspace(tmp_path_factory.mktemp("rewards") / "workspace")
    (workspace / "graded.py").write_text(GRADED)
    write_yaml(workspace / "train.yaml", SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr("entropy_rl.report.summary.write_curves", lambda directory: directory)  # slow
        for name, *more in (("several",), ("resumed", "--steps", "2"), ("resumed",)):
            assert main(["train", "--config", "train.yaml", "--run.directory", name, *more]) == 0
    return workspace


@pytest.mark.slow
def test_a_resumed_run_with_several_rewards_and_a_replay_buffer_is_the_same(runs):
    assert_same_run(runs / "several", runs / "resumed", step=3)


def test_each_reward_is_recorded_by_its_label_and_the_reward_is_their_weighted_sum(runs):
    for row in lines_of(runs / "several" / "samples.jsonl"):
        assert list(row["rewards"]) == ["graded", "words", "even", "repetition"]
        graded, words, even, repetition = row["rewards"].values()
        assert words == len(row["completion"].split()) and even == row["length"] % 2
        if row["reward"] is not None:  # of the first mini-batch
            assert row["reward"] == pytest.approx(graded + 0.1 * words + 0.5 * even, abs=1e-6)
        assert -1 < repetition <= 0


def test_metrics_are_the_means_and_deviations_of_what_is_recorded(runs):
    samples: dict[int, list[dict]] = {}
    for row in lines_of(runs / "several" / "samples.jsonl"):
        samples.setdefault(row["step"], []).append(row)
    for metrics in lines_of(runs / "several" / "metrics.jsonl"):
        rows = [row["rewards"] for row in samples[metrics["step"]]]
        for label in rows[0]:
            values = np.array([row[label] for row in rows])
            assert metrics[f"reward/{label}"] == pytest.approx(values.mean(), abs=1e-6)
            assert metrics[f"reward/{label}_std"] == pytest.approx(values.std(), abs=1e-6)
        assert metrics["without_reward"] == 0 and metrics["nonfinite_updates"] == 0
        # Nothing is left from a rollout before the first.
        assert ("replay/tokens" in metrics) == (metrics["step"] > 1)


def test_the_report_shows_every_reward(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    assert main(["report", "several", "--output", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "mean reward words" in page and '"even":' in page


def test_a_reward_that_is_nan_ends_the_run_in_one_line(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    wrong = SETTINGS | {"rewards": [{"name": "graded:nan"}], "run": {"directory": "nan"}}
    write_yaml(runs / "nan.yaml", wrong)
    assert main(["train", "--config", "nan.yaml"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("entropy-rl train")]
    assert re.search(r"rewards\[0\] \(graded:nan\): must .*, got nan for problem \d+$", line)


def test_wrong_rewards_are_refused_before_anything_is_written(here, refused):
    write_yaml(here / "wrong.yaml", SETTINGS | {"rewards": [{"name": "fromat"}]})
    line = refused("train", "--config", "wrong.yaml")
    assert "rewards[0].name: must be one of correct, graded" in line and "'format'" in line
    write_yaml(here / "wrong.yaml", SETTINGS | {"reward": {"correct": 1.0, "wrong": 0.0}})
    line = refused("train", "--config", "wrong.yaml")
    assert "reward: must be absent with rewards, whose {name: graded, right: NUMBER" in line
    write_yaml(here / "wrong.yaml", TRAIN | {"rewards": [{"name": "correct", "weight": 0}]})
    assert "at least one weight other than 0" in refused("train", "--config", "wrong.yaml")
    write_yaml(here / "wrong.yaml", TRAIN | {"advantage": [{"name": "gdpo"}]})
    assert "gdpo.reward_weights: must be weights by label" in refused(
        "train", "--config", "wrong.yaml"
    )
