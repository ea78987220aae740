"""Texts of the command line and values of recipes: what is given is what the method gets."""

from pathlib import Path

import pytest
from error_lines import says

from entropy_rl.cli.parse import parse_config, recipe_arguments
from entropy_rl.config.study import StudyConfig
from entropy_rl.config.train import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
REWARDS = str(CONFIGS / "countdown_rewards.yaml")
TEXTS = [
    ".* #### [0-9]+",
    "[abc]",
    ".*: done",
    "x: y # z",
    "{x}",
    "{problem} # b",
    "'q'",
    '"q"',
    "007",
    "1e-4",
    "1:30",
    "no",
    "null",
    "~",
    "--x",
    "[a",
    "",
    " a ",
    "\U0001f600: 1",
]


@pytest.fixture(autouse=True)
def methods(tmp_path, monkeypatch):
    (tmp_path / "mine_for_values.py").write_text(
        "class Annotated:\n"
        "    def __init__(self, tag: str, words: list[str] | None = None): ...\n"
        "class Plain:\n"
        "    def __init__(self, tag=None, words=None): ...\n"
        "def reward(pattern: str): ...\n"
        "def plain_reward(pattern): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def parsed(*arguments, **overrides):
    return parse_config(TrainConfig, "train", ["--config", REWARDS, *arguments], **overrides)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_argument_of_a_method_takes_the_text_as_it_is(text):
    assert parsed(f"--rewards.1.pattern={text}").rewards[1]["pattern"] == text
    named = parsed(f"--rewards.0.pattern={text}", "--rewards.0.name=mine_for_values:reward")
    assert named.rewards[0]["pattern"] == text
    logger = parsed("--run.loggers=[{name: wandb}]", f"--run.loggers.0.project={text}")
    assert logger.run.loggers[0]["project"] == text
    task = parsed("--task.name", "mine_for_values:Annotated", f"--task.args.tag={text}").task
    assert task.args["tag"] == text
    more = parsed("--task.name=mine_for_values:Annotated", f"--task.args.words+= {text}").task
    assert more.args["words"] == [f" {text}"]


def test_a_text_in_a_nested_task_and_in_a_list_of_texts_is_taken_as_it_is():
    name, args = "--task.args.tasks.a.name", "--task.args.tasks.a.args"
    task = parsed("--task.name=mixture", f"{args}.tag=# 7", f"{name}=mine_for_values:Annotated")
    assert task.task.args["tasks"]["a"]["args"] == {"tag": "# 7"}
    given = ["--task.args.words", "[a, b]", "--task.args.words.1", "007"]
    task = parsed("--task.name=mine_for_values:Annotated", *given).task
    assert task.args["words"] == ["a", "007"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", "1e3"),
        ("no", "no"),
        ("a # b", "a # b"),
        ("a: b", "a: b"),
        ("[a, b]", ["a", "b"]),
        ("[a", "[a"),
        ("null", None),
        ("~", "~"),
    ],
)
def test_an_argument_that_may_be_a_text_is_one_unless_it_is_yaml_of_another_type(text, value):
    task = parsed("--task.name", "math", "--task.args", "{}", "--task.args.train", text).task
    assert task.args == {"train": value}


def test_other_arguments_are_yaml():
    config = parsed("--advantage.1.alpha", "1e-4", "--rewards.3.buffer_tokens=010")
    assert config.advantage[1]["alpha"] == 1e-4 and config.rewards[3]["buffer_tokens"] == 10
    plain = ["--task.name", "mine_for_values:Plain"]
    assert parsed(*plain, "--task.args.tag", "1e-5").task.args == {"tag": 1e-5}
    assert parsed(*plain, "--task.args.tag", "[a, 2]").task.args == {"tag": ["a", 2]}
    # No part of a text is ignored.
    assert parsed(*plain, "--task.args.tag", "x: y # z").task.args == {"tag": "x: y # z"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1:30"], "--seed: must be an integer, got '1:30'"),
        (["--steps", "5 # x"], "--steps: must be valid YAML (a comment), got '5 # x'"),
        (
            ["--steps", "1_000"],
            "--steps: 1_000 must be without underscores, or in quotes if it is a text",
        ),
        (
            ["--run.accept_changes", "yes"],
            "--run.accept_changes: yes must be true or false, or in quotes if it is a text",
        ),
        (
            ["--task.name=mine_for_values:Plain", "--task.args.tag", "no"],
            "--task.args.tag: no must be true or false, or in quotes if it is a text",
        ),
    ],
)
def test_what_yaml_1_1_and_1_2_read_differently_is_refused(arguments, message):
    with pytest.raises(ValueError) as caught:
        parsed(*arguments)
    assert says(str(caught.value), message)


def test_numbers_with_a_leading_zero_are_decimal():
    assert parsed("--seed", "010").seed == 10 and parsed("--seed", "008").seed == 8


VALUES = [*TEXTS, 1e-5, 7, None, True, ["a # b", "no"], {"x": "x: y # z"}]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_an_override_of_a_recipe_is_a_value_and_its_command_line_gives_the_same(value):
    for name in ("Annotated", "Plain") if isinstance(value, str) else ("Plain",):
        overrides = {"task.args.tag": value, "task.name": f"mine_for_values:{name}"}
        config = parsed(overrides=overrides)
        assert config.task.args["tag"] == value
        command = recipe_arguments(TrainConfig, REWARDS, overrides)
        assert parse_config(TrainConfig, "train", command) == config
    if isinstance(value, str):
        for name in ("reward", "plain_reward"):
            overrides = {
                "rewards.1.pattern": value,
                "rewards.1.name": f"mine_for_values:{name}",
                "rewards+": {"name": "format", "label": "other", "pattern": value},
            }
            config = parsed(overrides=overrides)
            assert config.rewards[1]["pattern"] == config.rewards[-1]["pattern"] == value
            command = recipe_arguments(TrainConfig, REWARDS, overrides)
            assert parse_config(TrainConfig, "train", command) == config


def test_what_no_command_line_can_give_is_refused():
    task = {"task.name": "mine_for_values:Annotated"}
    for overrides, message in (
        (task | {"task.args.tag": 1e-5}, "--task.args.tag: must be a string, got 1e-05"),
        ({"run.checkpoints": "null"}, "--run.checkpoints: must be another text, as the "),
    ):
        with pytest.raises(ValueError) as caught:
            recipe_arguments(TrainConfig, REWARDS, overrides)
        assert str(caught.value).startswith(message)


def test_overrides_are_checked_as_options_are():
    for overrides, message in (
        ({"seed": "5"}, "--seed: must be an integer, got '5'"),
        ({"loss.kl_coeff": 0.1}, "--loss.kl_coeff: must be one of "),
        ({"rewards.9.weight": 1.0}, "--rewards.9.weight: must have an index from 0 to 3"),
    ):
        for act in (
            lambda overrides=overrides: parsed(overrides=overrides),
            lambda overrides=overrides: recipe_arguments(TrainConfig, REWARDS, overrides),
        ):
            with pytest.raises(ValueError) as caught:
                act()
            assert str(caught.value).startswith(message)


def test_the_claim_of_a_hypothesis_may_have_a_number_sign():
    given = ["--config", str(CONFIGS / "study" / "tiny.yaml"), "--hypotheses.0.claim", "a # b"]
    assert parse_config(StudyConfig, "study", given).hypotheses[0]["claim"] == "a # b"
