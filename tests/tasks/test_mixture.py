"""Several tasks in one run: each judges its own problems."""

import json

import graded_task
import pytest

from entropy_rl.tasks import Problem, Verdict, load_task


@pytest.fixture
def tasks(tmp_path):
    """Two sets of math problems with the answers 1, 2, ... and a, b, ..."""
    specs = {}
    for name, answers in (("numbers", "123456"), ("letters", "abc")):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(
            "".join(json.dumps({"problem": f"{name} {a}?", "answer": a}) + "\n" for a in answers)
        )
        args = {"train": str(file), "test": str(file), "verifier": "dapo", "chat": True}
        specs[name] = {"name": "math", "args": args}
    return specs


def make(tasks, **more):
    return load_task("mixture", {"tasks": tasks} | more)


def test_every_problem_is_there_once_under_the_name_of_its_task(tasks):
    problems = make(tasks).problems("train")
    assert sorted(p.source for p in problems) == ["letters"] * 3 + ["numbers"] * 6
    assert len({p.id for p in problems}) == 9
    assert problems == make(tasks).problems("train")
    # The sources alternate by their shares.
    assert [p.source for p in problems[:3]].count("letters") == 1


def test_each_task_judges_its_own_problems(tasks):
    mixture = make(tasks)
    problems = mixture.problems("train")
    right = [f"Answer: {p.answer}" for p in problems]
    assert {j.verdict for j in mixture.judge(problems, right)} == {Verdict.CORRECT}
    turned = right[1:] + right[:1]
    assert {j.verdict for j in mixture.judge(problems, turned)} == {Verdict.WRONG}
    mixture.close()


def test_a_task_of_a_mixture_has_its_own_grade_from_which_an_answer_is_correct(tasks):
    mixture = make({"a": graded_task.SPEC, "b": graded_task.SPEC})
    problems = mixture.problems("train")
    judgements = mixture.judge(problems, ["x"] * len(problems))
    assert {j.verdict for j in judgements} == {Verdict.CORRECT} and len(judgements) == 2


def test_weights_are_shares_of_the_training_problems_and_of_no_other_split(tasks):
    weighted = {name: spec | {"weight": 1} for name, spec in tasks.items()}
    mixture = make(weighted)
    sources = [p.source for p in mixture.problems("train")]
    assert (sources.count("numbers"), sources.count("letters")) == (3, 3)
    assert len(mixture.problems("test")) == 9


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((0.7, 0.7), (3, 3)), ((0.1, 0.1), (3, 3)), ((0.6, 0.3), (6, 3)), ((0.1, 0.3), (1, 3))]
    + [((i / 10, i / 10), (3, 3)) for i in range(1, 100)],
)
def test_no_problem_is_lost_by_rounding(tasks, weights, counts):
    names = ("numbers", "letters")
    weighted = {n: tasks[n] | {"weight": w} for n, w in zip(names, weights, strict=True)}
    sources = [p.source for p in make(weighted).problems("train")]
    assert tuple(map(sources.count, names)) == counts


def test_system_and_examples_come_before_every_question(tasks):
    dialogue = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    mixture = make(tasks, system="Be brief.", examples=[dialogue])
    before = (("system", "Be brief."), ("user", "q"), ("assistant", "a"))
    assert {p.messages for p in mixture.problems("train")} == {before}


class Sourced:
    """A task with sources of its own."""

    def problems(self, split):
        return [Problem(i, "?", "", source="xy"[i % 2]) for i in range(4)]

    def judge(self, problems, completions):
        return [
            completion == problem.source for problem, completion in _pairs(problems, completions)
        ]


def _pairs(problems, completions):
    return zip(problems, completions, strict=True)


def test_the_sources_of_a_task_are_kept_behind_its_name(tasks):
    mixture = make({"own": {"name": f"{__name__}:Sourced"}, "letters": tasks["letters"]})
    problems = mixture.problems("train")
    assert {p.source for p in problems} == {"own/x", "own/y", "letters"}
    right = [p.source[-1] if "/" in p.source else f"Answer: {p.answer}" for p in problems]
    assert {j.verdict for j in mixture.judge(problems, right)} == {Verdict.CORRECT}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: {"numbers": t["numbers"]}, "task.args.tasks: must be a mapping of 2 to 128"),
        (
            lambda t: t | {"numbers": t["numbers"] | {"weight": 2}},
            "task.args.tasks: must be tasks that all have a weight, or none",
        ),
        (
            lambda t: t | {"numbers": t["numbers"] | {"weight": 0}},
            "task.args.tasks.numbers.weight: must be a number > 0",
        ),
        (lambda t: t | {"more": {"name": "maths"}}, "task.args.tasks.more.name: "),
        (lambda t: t | {"more": {"nam": "math"}}, "task.args.tasks.more.nam: "),
        (lambda t: t | {"more": {"name": 5}}, "task.args.tasks.more.name: must be the name of"),
        (lambda t: t | {"more": {"name": None}}, "task.args.tasks.more.name: must be the name of"),
        (lambda t: t | {"more": {"name": [5]}}, "task.args.tasks.more.name: must be the name of"),
        (
            lambda t: t | {"more": {"name": "math", "args": 5}},
            "task.args.tasks.more.args: must be a mapping of arguments, got 5",
        ),
        (
            lambda t: t | {"more": {"name": "countdown_turns"}},
            "task.args.tasks.more.name: must be a task of a single turn",
        ),
        (lambda t: t | {"a/b": t["letters"]}, "task.args.tasks: must be a mapping from names"),
    ],
)
def test_a_mixture_that_cannot_work_is_refused_in_a_line(tasks, change, line):
    with pytest.raises(ValueError) as error:
        make(change(tasks))
    assert str(error.value).startswith(line), error.value


def test_a_system_message_needs_chat_prompts(tasks):
    plain = {name: spec | {"args": spec["args"] | {"chat": False}} for name, spec in tasks.items()}
    with pytest.raises(ValueError, match="must be a task of chat messages"):
        make(plain, system="Be brief.").problems("train")
