"""The maths task: its files, its prompts, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from entropy_rl.tasks.maths import Maths
from entropy_rl.tasks.task import Problem, Task, Verdict

CORRECT, WRONG, UNPARSABLE = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE
CRASH = Verdict.CRASH


def problem(answer: str) -> Problem:
    return Problem(0, "the prompt", answer)


def write(path: Path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_verifier_of_ones_own_sees_prompt_completion_and_answer(tmp_path, monkeypatch):
    (tmp_path / "own_verifier.py").write_text(
        "from entropy_rl.tasks.task import Verdict\n"
        "def check(prompt, completion, answer):\n"
        "    if completion == 'bool':\n"
        "        return True\n"
        "    return Verdict.CORRECT if (prompt, completion) == ('the prompt', answer) else Verdict.WRONG\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = Maths(verifier="own_verifier:check", workers=1)
    assert task.judge([problem("42")] * 3, ["42", "bool", "41"]) == [CORRECT, CRASH, WRONG]
    task.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"verifier": "mathverify"},
            "task.args.verifier: 'mathverify' .* did you mean 'math-verify'.* module:function",
        ),
        (
            {"verifier": "no_such:f"},
            "task.args.verifier: cannot import 'no_such:f': No module named 'no_such'",
        ),
        ({"verifier": "math:f"}, "task.args.verifier: cannot import 'math:f': .* no attribute 'f'"),
        ({"verifier": "math:pi"}, "task.args.verifier: 'math:pi' is no function; allowed:"),
        ({"verifier": "__main__:f"}, "task.args.verifier: '__main__:f' is not allowed; allowed:"),
        ({"prompt": "dapo"}, "task.args.verifier: 'math-verify' reads .*boxed.* allowed: 'dapo'"),
        ({"prompt": "think"}, "task.args.prompt: 'think' is not allowed; allowed: boxed, dapo, .*{problem}"),
        ({"train": "no/such.jsonl"}, "task.args.train: 'no/such.jsonl' is not a file; allowed: a JSONL file"),
        ({"test": "."}, "task.args.test: '.' is not a file"),
        ({"workers": 0}, "task.args.workers: 0 is not allowed"),
        ({"deadline_s": -1}, "task.args.deadline_s: -1 is not allowed"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        Maths(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON .*; allowed: one JSON object per line"),
        (b"[" * 100_000, "not JSON .*; allowed"),
        (b"[1]", "list found; allowed: one JSON object per line"),
        (b'{"problem": "\xff", "answer": "1"}', "byte 14 is not UTF-8; allowed: UTF-8 text"),
        (b'{"question": "a", "answer": "1"}', "no field 'problem'; .*problem_field: .*'question', 'answer'"),
        (b'{"problem": "a"}', "no field 'answer'; allowed as task.args.answer_field: .*'problem'"),
        (b'{"problem": " ", "answer": "1"}', "'problem' is ' '; allowed: a non-empty text"),
        (b'{"problem": [{"role": "user"}], "answer": "1"}', "'problem' is .*; allowed: a non-empty text"),
        (b'{"problem": "a", "answer": ""}', "'answer' is ''; allowed: a number, or a non-empty text"),
        (b'{"problem": "a", "answer": null}', "'answer' is None; allowed"),
        (b'{"problem": "a", "answer": true}', "'answer' is True; allowed"),
        (b'{"problem": "a", "answer": NaN}', "'answer' is nan; allowed"),
        (b'{"problem": "a", "answer": 1e999}', "'answer' is inf; allowed"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_faulty_line_is_named_with_what_is_allowed(tmp_path, line, message):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"problem": "a", "answer": "1"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"^{file}:3: {message}") as error:
        Maths(train=str(file)).problems("train")
    assert "\n" not in str(error.value)


def test_an_empty_file_is_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n")
    with pytest.raises(ValueError, match=rf"^{file}:1: the file is empty; allowed:"):
        Maths(train=str(file)).problems("train")


@pytest.mark.parametrize(
    ("value", "answer"),
    [(142.0, "142"), (142, "142"), (-0.5, "-0.5"), (1e-7, "0.0000001"), (1e21, "1" + "0" * 21), (" 7 ", "7")],
)
def test_an_answer_may_be_a_number(tmp_path, value, answer):
    file = write(tmp_path / "data.jsonl", {"problem": "a", "answer": value})
    assert Maths(test=file).problems("test")[0].answer == answer


def test_splits_are_files_and_ids_are_places(tmp_path):
    train = write(tmp_path / "a", *({"question": f"q{i}", "solution": i} for i in range(3)))
    test = write(tmp_path / "b", {"question": "t", "solution": "x"})
    task = Maths(train=train, test=test, chat=True, problem_field="question", answer_field="solution")
    assert isinstance(task, Task)
    problems = task.problems("train")
    assert [(p.id, p.answer, p.chat) for p in problems] == [(0, "0", True), (1, "1", True), (2, "2", True)]
    assert task.problems("test")[0].prompt.startswith("t\n")
    with pytest.raises(ValueError, match=r"task.args.validation: no file .*; given: train, test"):
        task.problems("validation")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "boxed",
            "$P$\nPlease reason step by step, and put your final answer within \\boxed{}.",
        ),
        (
            "dapo",
            "Solve the following math problem step by step. The last line of your response should be of the "
            "form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n$P$\n\n"
            'Remember to put your answer on its own line after "Answer:".',
        ),
        ("Q: {problem} {x} A:", "Q: $P$ {x} A:"),
    ],
)
def test_a_prompt_holds_the_problem_as_it_is(tmp_path, prompt, expected):
    latex = r"Is $\frac{1}{2}$ in {problem} {0} %s?"
    task = Maths(train=write(tmp_path / "a", {"problem": latex, "answer": 1}), prompt=prompt, verifier="dapo")
    assert task.problems("train")[0].prompt == expected.replace("$P$", latex)


def test_importing_the_task_is_light():
    heavy = ("jax", "math_verify", "sympy", "transformers")
    code = f"import entropy_rl.tasks.maths, sys; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert run.stdout == "[]\n"
