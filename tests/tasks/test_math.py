"""The math task: its files, its prompts, and what it refuses."""

import decimal
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from math_files import write_parquet

from entropy_rl.tasks.math import Math
from entropy_rl.tasks.task import AnsweringTask, Problem, Task, Verdict

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
        "    if completion in ('text', '0.5'):\n"
        "        return float(completion) if completion == '0.5' else completion\n"
        "    return Verdict.CORRECT if (prompt, completion) == ('the prompt', answer) else "
        "Verdict.WRONG\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = Math(verifier="own_verifier:check", workers=1, correct_at=0.5)
    judged = task.judge([problem("42")] * 4, ["42", "text", "41", "0.5"])
    assert [one.verdict for one in judged] == [CORRECT, CRASH, WRONG, CORRECT]
    assert judged[3].reward == 0.5
    task.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"verifier": "mathverify"},
            "task.args.verifier: must be one of math-verify, dapo, module:function, got "
            r"'mathverify' \(did you mean 'math-verify'\?\)",
        ),
        (
            {"verifier": "no_such:f"},
            "task.args.verifier: cannot import 'no_such:f': No module named 'no_such'",
        ),
        ({"verifier": "math:f"}, "task.args.verifier: cannot import 'math:f': .* no attribute 'f'"),
        ({"verifier": "math:pi"}, "task.args.verifier: must be a function .*, got 'math:pi'$"),
        (
            {"verifier": "__main__:f"},
            "task.args.verifier: must be in a module of its own file, got '__main__:f'$",
        ),
        (
            {"prompt": "dapo"},
            "task.args.verifier: must be one of dapo, module:function with the prompt 'dapo', "
            r"got 'math-verify', which reads .boxed$",
        ),
        (
            {"prompt": "Answer: {problem}"},
            "task.args.verifier: must be one of dapo, module:function with .*, got 'math-verify', ",
        ),
        (
            {"prompt": "Q: {problem} A:", "verifier": "dapo"},
            "task.args.verifier: must be one of module:function with the prompt 'Q: {problem} A:', "
            r"got 'dapo', which reads Answer: or .boxed$",
        ),
        (
            {"prompt": "think"},
            "task.args.prompt: must be one of boxed, dapo, or a text .*{problem}, got 'think'$",
        ),
        (
            {"train": "no/such.jsonl"},
            "task.args.train: must be a data file .* or one of the sets dapo_.*, "
            "got 'no/such.jsonl'",
        ),
        ({"test": "."}, "task.args.test: must be .*, got '.'"),
        ({"test": ""}, "task.args.test: must be .*, got ''"),
        ({"workers": 0}, "task.args.workers: must be an integer >= 1, got 0"),
        (
            {"deadline_s": -1},
            "task.args.deadline_s: must be a number > 0 and <= 86400, got -1",
        ),
        (
            {"deadline_s": 1e20},
            r"task.args.deadline_s: must be a number > 0 and <= 86400, got 1e\+20",
        ),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        Math(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "must be one JSON object per line, got an object over several lines"),
        (b'{"problem"', "must be one JSON object per line, got invalid JSON"),
        (b"[" * 100_000, "must be one JSON object per line, got a JSON array"),
        (b"[1]", "must be one JSON object per line, got a JSON array"),
        (b"1", "must be one JSON object per line, got int"),
        (b'{"problem": "\xff", "answer": "1"}', "must be UTF-8 text, got an invalid byte at 14"),
        (
            b'{"question": "a", "answer": "1"}',
            "problem_field: must be one of 'question', 'answer', got 'problem'",
        ),
        (b'{"problem": "a"}', "answer_field: must be one of 'problem', got 'answer'"),
        (b'{"problem": " ", "answer": "1"}', "'problem': must be a non-empty text, got ' '"),
        (
            b'{"problem": [{"role": "user"}], "answer": "1"}',
            r"'problem\[0\]': must have a non-empty text as 'content', got None",
        ),
        (
            b'{"problem": "a", "answer": ""}',
            "'answer': must be a number or a non-empty text, got ''",
        ),
        (b'{"problem": "a", "answer": null}', "'answer': must be .*, got None"),
        (b'{"problem": "a", "answer": true}', "'answer': must be .*, got True"),
        (b'{"problem": "a", "answer": NaN}', "'answer': must be .*, got nan"),
        (b'{"problem": "a", "answer": 1e999}', "'answer': must be .*, got inf"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_faulty_line_is_named_with_what_is_allowed(tmp_path, line, message):
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"problem": "a", "answer": "1"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"^{file}:3: {message}") as error:
        Math(train=str(file)).problems("train")
    assert "\n" not in str(error.value)


def test_an_empty_file_is_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n")
    with pytest.raises(
        ValueError, match=rf"^{file}: must have at least one row, got an empty file"
    ):
        Math(train=str(file)).problems("train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"query": "a", "answer": "1"},
            "row 1: problem_field: must be one of 'query', 'answer', got null, for which none of ",
        ),
        (
            {"problem": "a", "answer": None},
            "row 1: 'answer': must be a number or a non-empty text, got None",
        ),
        (
            {"problem": ["a"], "answer": "1"},
            r"row 1: 'problem': must be a non-empty text, got \['a'\]",
        ),
    ],
)
def test_a_faulty_row_of_a_parquet_file_is_named_with_what_is_allowed(tmp_path, row, message):
    file = write_parquet(tmp_path / "data.parquet", [row])
    with pytest.raises(ValueError, match=rf"^{file}: {message}") as error:
        Math(train=str(file)).problems("train")
    assert "\n" not in str(error.value)


def test_the_second_row_of_a_parquet_file_has_its_own_number(tmp_path):
    rows = [{"problem": "a", "answer": 1.5}, {"problem": " ", "answer": 1.5}]
    file = write_parquet(tmp_path / "data.parquet", rows)
    with pytest.raises(
        ValueError, match=rf"^{file}: row 2: 'problem': must be a non-empty text, got ' '"
    ):
        Math(train=str(file)).problems("train")


def test_a_parquet_file_is_known_by_its_content(tmp_path):
    file = write_parquet(tmp_path / "data", [{"problem": "a", "answer": 142.0}])
    assert Math(test=str(file)).problems("test")[0].answer == "142"
    write(tmp_path / "b.parquet", {"problem": "a", "answer": 1})
    with pytest.raises(ValueError, match=r"b.parquet: must be a parquet file, as its name says"):
        Math(test=str(tmp_path / "b.parquet")).problems("test")


@pytest.mark.parametrize("end", [10, -9], ids=["the beginning", "the end cut off"])
def test_a_broken_parquet_file_is_one_line(tmp_path, end):
    file = write_parquet(tmp_path / "data.parquet", [{"problem": "a", "answer": "1"}])
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(
        ValueError, match=rf"^{file}: must be a complete parquet file, got an error \("
    ) as e:
        Math(test=str(file)).problems("test")
    assert "\n" not in str(e.value)


def test_a_parquet_file_that_is_damaged_inside_is_one_line(tmp_path):
    rows = [{"problem": f"{i} {i * i}", "answer": str(i)} for i in range(20_000)]
    file = write_parquet(tmp_path / "data.parquet", rows)
    content = bytearray(file.read_bytes())
    content[len(content) // 8 : len(content) // 4] = bytes(len(content) // 4 - len(content) // 8)
    file.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf"^{file}: must be a complete parquet file, got an error after row \d+",
    ) as error:
        Math(test=str(file)).problems("test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (142.0, "142"),
        (142, "142"),
        (-0.5, "-0.5"),
        (1e-7, "0.0000001"),
        (1e21, "1" + "0" * 21),
        (" 7 ", "7"),
    ],
)
def test_an_answer_may_be_a_number(tmp_path, value, answer):
    file = write(tmp_path / "data.jsonl", {"problem": "a", "answer": value})
    assert Math(test=file).problems("test")[0].answer == answer


def test_splits_are_files_and_ids_are_places(tmp_path):
    train = write(tmp_path / "a", *({"question": f"q{i}", "solution": i} for i in range(3)))
    test = write(tmp_path / "b", {"question": "t", "solution": "x"})
    task = Math(
        train=train, test=test, chat=True, problem_field="question", answer_field="solution"
    )
    assert isinstance(task, Task)
    problems = task.problems("train")
    assert [(p.id, p.answer, p.chat) for p in problems] == [
        (0, "0", True),
        (1, "1", True),
        (2, "2", True),
    ]
    assert task.problems("test")[0].prompt.startswith("t\n")
    with pytest.raises(
        ValueError, match=r"task.args.validation: must be .*, got null; given: train, test"
    ):
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
            "Solve the following math problem step by step. The last line of your response should "
            "be of the "
            "form Answer: $Answer (without quotes) where $Answer is the answer to the "
            "problem.\n\n$P$\n\n"
            'Remember to put your answer on its own line after "Answer:".',
        ),
        ("Q: {problem} {x} Answer:", "Q: $P$ {x} Answer:"),
    ],
)
def test_a_prompt_holds_the_problem_as_it_is(tmp_path, prompt, expected):
    latex = r"Is $\frac{1}{2}$ in {problem} {0} %s?"
    task = Math(
        train=write(tmp_path / "a", {"problem": latex, "answer": 1}), prompt=prompt, verifier="dapo"
    )
    assert task.problems("train")[0].prompt == expected.replace("$P$", latex)


@pytest.mark.parametrize(
    ("prompt", "verifier"),
    [
        (r"{problem} \boxed{}", "math-verify"),
        (r"{problem} \boxed{}", "dapo"),
        ("{problem} Answer:", "dapo"),
        ("dapo", "dapo"),
        ("boxed", "dapo"),
        ("{problem}", "math:isqrt"),
    ],
)
def test_a_prompt_that_asks_for_what_the_verifier_reads_is_accepted(prompt, verifier):
    Math(prompt=prompt, verifier=verifier).close()


def test_final_answers_are_read_where_the_prompt_asks_for_them():
    boxed, dapo = Math(), Math(prompt="dapo", verifier="dapo")
    assert isinstance(boxed, AnsweringTask)
    completions = [r"\boxed{0.5}", r"\boxed{1} no, \boxed{\frac12}", "Answer: 42", ""]
    one, other, *nothing = boxed.final_answers(completions)
    assert one == other == "1/2" and nothing == [None, None]
    assert dapo.final_answers(completions)[2:] == ["42", None]


def test_importing_the_task_is_light():
    heavy = ("jax", "math_verify", "sympy", "transformers")
    heavy += ("tensorflow_datasets", "pyarrow", "huggingface_hub", "numpy")
    code = (
        "import entropy_rl.tasks.math, sys; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout == "[]\n"


def test_a_decimal_of_a_parquet_file_is_a_number(tmp_path):
    answers = [decimal.Decimal(x) for x in ("1.50", "142.00", "-0.25")]
    pyarrow.parquet.write_table(
        pyarrow.table({"problem": list("abc"), "answer": answers}), tmp_path / "a.parquet"
    )
    problems = Math(test=str(tmp_path / "a.parquet")).problems("test")
    assert [problem.answer for problem in problems] == ["1.5", "142", "-0.25"]
