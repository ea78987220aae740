"""Sections of a config: values they refuse in one line, and what follows from their values."""

import pytest
from tiny_runs import TRAIN, write_yaml

from entropy_rl.cli.parse import parse_config
from entropy_rl.config.common import EpisodesConfig
from entropy_rl.config.rollout import DecodingConfig, EvaluationConfig, RolloutConfig, check_stop
from entropy_rl.config.train import CriticConfig, LossConfig, TrainConfig
from entropy_rl.trainer.check_config import warn_of_warmup


def test_updates_of_the_policy_are_fewer_where_the_critic_warms_up(tmp_path):
    critic = {"learning_rate": 0.1, "warmup_steps": 2}
    config = TRAIN | {"critic": critic, "advantage": [{"name": "gae"}]}
    file = write_yaml(tmp_path / "c.yaml", config)
    found = parse_config(TrainConfig, "train", ["--config", str(file)])
    # 6 steps with 4 prompts, 2 of them in each mini-batch; 2 steps are those of the critic alone.
    assert (found.total_updates(), found.total_updates(critic=True)) == (8, 12)
    short = parse_config(TrainConfig, "train", ["--config", str(file), "--steps", "1"])
    assert (short.total_updates(), short.total_updates(critic=True)) == (0, 2)


@pytest.mark.parametrize(
    ("warmup", "total", "warns"),
    [(4, 4, True), (5, 4, True), (3, 4, False), (1, 1, False), (5, 0, False)],
)
def test_a_warm_up_as_long_as_the_run_is_warned_of(caplog, warmup, total, warns):
    warn_of_warmup("optimizer.warmup_updates", warmup, total)
    says = f"optimizer.warmup_updates: the learning rate rises in all {total} updates"
    assert caplog.messages == [says] * warns


def evaluation(**more):
    return EvaluationConfig(split="test", samples=1, max_new_tokens=2, **more)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: LossConfig(kl_coef=-0.1), "loss.kl_coef: must be >= 0, got -0.1"),
        (
            lambda: CriticConfig(1.0, gamma=0.0),
            "critic.gamma: must be > 0 and <= 1, got 0.0",
        ),
        (
            lambda: RolloutConfig(4, 2, 8, 8, stop=[""]),
            "rollout.stop: must be a list of non-empty",
        ),
        (lambda: evaluation(stop=[""]), "evaluation.stop: must be a list of non-empty"),
        (lambda: evaluation(problems=0), "evaluation.problems: must be null or >= 1, got 0"),
        (
            lambda: EpisodesConfig(max_turn_tokens=0),
            "task.episodes.max_turn_tokens: must be null or >= 1, got 0",
        ),
        (
            lambda: check_stop(["a"], "rollout.stop", DecodingConfig(chunk_steps=None)),
            "rollout.stop: must be empty if decoding.chunk_steps is null, got ['a']",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_in_a_line_with_its_place(make, line):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
