"""The task with two prompts for each problem: which problems it has, and who judges them."""

import json

import graded_task
import pytest

from entropy_rl.tasks import Verdict, load_task
from entropy_rl.tasks.problems import prompts_per_problem


@pytest.fixture
def task(tmp_path):
    """A set of math problems with the answers 1, 2, 3."""
    file = tmp_path / "numbers.jsonl"
    rows = [{"problem": f"number {a}?", "answer": a} for a in "123"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = {"train": str(file), "test": str(file), "verifier": "dapo", "chat": True}
    return {"name": "math", "args": args}


def make(task, **more):
    return load_task("two_prompts", {"task": task, "system": "Explore."} | more)


def test_every_problem_is_there_under_both_prompts(task):
    both = make(task).problems("train")
    assert [p.source for p in both] == ["normal", "high_entropy"] * 3
    assert prompts_per_problem(make(task), "train") == 2
    assert len({p.id for p in both}) == 6
    for normal, high in zip(both[::2], both[1::2], strict=True):
        assert normal.prompt == high.prompt and normal.answer == high.answer
        assert normal.messages == () and high.messages == (("system", "Explore."),)
    assert prompts_per_problem(load_task(**task), "train") == 1


def test_other_splits_have_the_prompts_of_the_task(task):
    assert {p.source for p in make(task).problems("test")} == {"normal"}
    assert prompts_per_problem(make(task), "test") == 1
    assert len(make(task, splits=["train", "test"]).problems("test")) == 6


def test_the_task_judges_both_prompts_alike(task):
    two = make(task)
    problems = two.problems("train")
    right = [f"Answer: {p.answer}" for p in problems]
    assert {j.verdict for j in two.judge(problems, right)} == {Verdict.CORRECT}
    assert two.final_answers(right[:3]) == ["1", "1", "2"]
    turned = right[2:] + right[:2]
    assert {j.verdict for j in two.judge(problems, turned)} == {Verdict.WRONG}
    two.close()


def test_the_grade_from_which_an_answer_is_correct_is_that_of_the_task():
    two = make(graded_task.SPEC)
    judgements = two.judge(two.problems("train"), ["x", "x"])
    assert {j.verdict for j in judgements} == {Verdict.CORRECT}


def test_sources_and_a_system_message_of_the_task_are_kept_but_for_the_second_prompt(task):
    mixture = {"tasks": {"a": task, "b": task}, "system": "Be brief."}
    two = make({"name": "mixture", "args": mixture})
    problems = two.problems("train")
    assert {p.source for p in problems} == {
        f"{m}/{t}" for m in ("normal", "high_entropy") for t in "ab"
    }
    for problem in problems:
        system = "Be brief." if problem.is_from("normal") else "Explore."
        assert problem.messages == (("system", system),)
    right = [f"Answer: {p.answer}" for p in problems]
    assert {j.verdict for j in two.judge(problems, right)} == {Verdict.CORRECT}


def test_what_cannot_have_two_prompts_is_refused_in_a_line(task):
    plain = task | {"args": task["args"] | {"chat": False}}
    with pytest.raises(ValueError, match=r"task\.args\.task: must be a task of chat messages"):
        make(plain).problems("train")
    with pytest.raises(ValueError, match=r"task\.args\.system: must be a text, got ''"):
        make(task, system="")
    with pytest.raises(
        ValueError, match=r"task\.args\.task\.name: must be a task of a single turn"
    ):
        make({"name": "countdown_turns"})
    with pytest.raises(ValueError, match=r"task\.args\.task\.name: "):
        make({"name": "maths"})
