"""The problems of a user's task: one line for whatever it returns or raises instead of them."""

import dataclasses
import json
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from entropy_rl.config.checks import require
from entropy_rl.tasks import Problem
from entropy_rl.tasks.environments.pool import Episode
from entropy_rl.tasks.environments.worker import problem_of
from entropy_rl.tasks.problems import problems_of, prompts_per_problem


class Mine:
    def __init__(self, problems):
        self.make = problems

    def problems(self, split):
        return self.make()


def raises(error):
    raise error


GOOD = Problem(0, "p", "a", chat=True, messages=(("system", "s"),), source="x")


@dataclasses.dataclass(frozen=True)
class Harder(Problem):
    level: object = object()


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        (lambda: None, "must return a list of problems, got NoneType"),
        (lambda: iter([GOOD]), "must return a list of problems, got list_iterator"),
        (lambda: [{"id": 0, "prompt": "p"}], "must return objects of Problem, got dict"),
        (lambda: [GOOD, Problem(7, None, "a")], "problem 7: prompt must be of type str, got None"),
        (lambda: [Problem(7, "p", "a", source=3)], "problem 7: source must be of type str, got 3"),
        *[
            (
                lambda wrong=wrong: [Problem(7, "p", wrong)],
                f"problem 7: answer must be of type str, got {wrong!r}",
            )
            for wrong in (np.int64(3), Decimal("0.1"), Fraction(1, 3), {"a"}, b"a", ("a",), 3)
        ],
        (
            lambda: [Problem(np.int64(7), "p", "a")],
            "problem np.int64(7): id must be of type int, got np.int64(7)",
        ),
        (
            lambda: [Problem(7, "p", "a", chat=np.True_)],
            "problem 7: chat must be of type bool, got np.True_",
        ),
        *[
            (
                lambda wrong=wrong: [Problem(7, "p", "a", messages=wrong)],
                f"problem 7: messages must be pairs (role, content) of texts, got {wrong!r}",
            )
            for wrong in ((("system", None),), (("user",),), ("ab",), None)
        ],
        *[
            (
                lambda wrong=wrong: [Problem(7, "p", "a", chat_template_kwargs=wrong)],
                "problem 7: chat_template_kwargs must be a mapping that JSON can hold, "
                f"got {wrong!r}",
            )
            for wrong in ({1: "a"}, {"a": (1,)}, {"a": {2}}, None)
        ],
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
    harder = Harder(1, "p", "a", chat_template_kwargs=MappingProxyType({"thinking": False}))
    assert problems_of(Mine(lambda: (GOOD, harder)), "train", "task.train_split") == [GOOD, harder]
    environment = SimpleNamespace(environment=Mine(None), problems=lambda split: 3)
    with pytest.raises(ValueError, match=r"^task\.name: Mine\.problems: must return a list"):
        problems_of(environment, "train", "task.train_split")


def test_a_worker_gets_the_fields_of_a_problem_of_any_subclass():
    kwargs = MappingProxyType({"thinking": False})
    fields = dict(id=1, prompt="p", answer="a", messages=(("system", "s"),), source="x")
    harder = Harder(**fields, chat_template_kwargs=kwargs, level={1, 2})
    message = json.loads(Episode(harder, 3, ("go",)).message())
    assert problem_of(message["problem"]) == Problem(**fields, chat_template_kwargs=dict(kwargs))


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
