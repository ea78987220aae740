"""`data prompts` shows the first turns of an environment as the model sees them."""

import pytest

from entropy_rl.cli.main import main
from entropy_rl.tasks.countdown.turns import CountdownTurns

OF_TASK = ["data", "prompts", "--model.path", "asset:countdown", "--count", "1", "--task.name"]


def test_turns_are_shown_with_the_answers_of_the_environment(capsys):
    problem = CountdownTurns().problems("train")[0]
    *numbers, _, _ = problem.answer.removeprefix("<bos>").split()
    large, small = sorted(map(int, numbers[:2]), reverse=True)
    actions = [f"{large} + {small} =", "stop"]
    assert (
        main([*OF_TASK, "countdown_turns", *(x for a in actions for x in ("--actions+", a))]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("== train 0: ") and lines[2:4] == ["-- turn 1: 4 tokens", actions[0]]
    assert lines[4].startswith("-- answer: ") and lines[5].strip().startswith(f"{large + small} ")
    assert lines[6:] == ["-- turn 2: 1 tokens", "stop", "-- ended: done, wrong"]


@pytest.mark.parametrize(
    ("task", "action", "line"),
    [
        ("countdown", "7", "actions: must be empty for a task without turns, got ['7']"),
        ("countdown_turns", "", "actions[0]: must be a text of at least one token, got ''"),
    ],
)
def test_actions_that_cannot_be_played_are_refused(capsys, task, action, line):
    assert main([*OF_TASK, task, "--actions+", action]) == 2
    assert line in capsys.readouterr().err
