"""The problems of a user's task: one line for whatever it returns or raises instead of them."""

from types import SimpleNamespace

import pytest

from entropy_rl.config.checks import require
from entropy_rl.tasks import Problem
from entropy_rl.tasks.problems import problems_of, prompts_per_problem


class Mine:
    def __init__(self, problems):
        self.make = problems

    def problems(self, split):
        return self.make()


def raises(error):
    raise error


GOOD = Problem(0, "p", "a", chat=True, messages=(("system", "s"),), source="x")
TEXTS = "must return problems whose prompt, source and messages are texts, got another type in"


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        (lambda: None, "must return a list of problems, got NoneType"),
        (lambda: iter([GOOD]), "must return a list of problems, got list_iterator"),
        (lambda: [{"id": 0, "prompt": "p"}], "must return objects of Problem, got dict"),
        (lambda: [GOOD, Problem(7, None, "a")], f"{TEXTS} problem 7"),
        (lambda: [Problem(7, "p", "a", source=3)], f"{TEXTS} problem 7"),
        (lambda: [Problem(7, "p", "a", messages=(("system", None),))], f"{TEXTS} problem 7"),
        (lambda: raises(RuntimeError("a\nb")), "RuntimeError: a b"),
        (lambda: raises(SystemExit(4)), "SystemExit: 4"),
        (lambda: raises(AttributeError("no x")), "AttributeError: no x"),
        (lambda: [int("x")], "ValueError: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_what_is_no_list_of_problems_is_one_line(problems, message):
    with pytest.raises(ValueError) as caught:
        problems_of(Mine(problems), "train", "task.train_split")
    assert str(caught.value) == f"task.name: Mine.problems: {message}"


def test_what_a_task_says_itself_and_a_missing_file_are_passed_on():
    with pytest.raises(ValueError, match=r"^task\.args: must be something$"):
        problems_of(
            Mine(lambda: raises(ValueError("task.args: must be something"))),
            "train",
            "task.train_split",
        )
    with pytest.raises(ValueError, match=r"^a\.b: must be 1, got 2$"):
        problems_of(Mine(lambda: require(False, "a.b", 2, "1")), "train", "task.train_split")
    with pytest.raises(FileNotFoundError):
        problems_of(
            Mine(lambda: raises(FileNotFoundError(2, "gone", "x.jsonl"))),
            "train",
            "task.train_split",
        )


def test_an_unknown_split_is_named_by_its_field():
    with pytest.raises(ValueError, match=r"^task\.train_split: must be train$"):
        problems_of(
            Mine(lambda: raises(ValueError("split: must be train"))), "x", "task.train_split"
        )


def test_problems_are_those_of_the_task():
    assert problems_of(Mine(lambda: (GOOD,)), "train", "task.train_split") == [GOOD]
    environment = SimpleNamespace(environment=Mine(None), problems=lambda split: 3)
    with pytest.raises(ValueError, match=r"^task\.name: Mine\.problems: must return a list"):
        problems_of(environment, "train", "task.train_split")


@pytest.mark.parametrize("count", [0, "2", None])
def test_prompts_of_a_problem_are_a_number(count):
    task = SimpleNamespace(prompts_per_problem=lambda split: count)
    with pytest.raises(ValueError, match=r"prompts_per_problem: must be a number >= 1, got"):
        prompts_per_problem(task, "train")


def test_a_method_that_raises_is_named():
    task = SimpleNamespace(prompts_per_problem=lambda split: int(split))
    said = "^task.name: SimpleNamespace.prompts_per_problem: ValueError: invalid literal for int"
    with pytest.raises(ValueError, match=said):
        prompts_per_problem(task, "train")
