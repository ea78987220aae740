"""Fields of data files: dotted names, fields found by name, and rows that are left out."""

import json
import logging

import pytest
from math_files import write_jsonl, write_parquet

from entropy_rl.cli.main import main
from entropy_rl.tasks.data_files.fields import Fields, find_fields, get_field, take_answer
from entropy_rl.tasks.math import Math
from entropy_rl.tasks.math.examples import read_examples

BOXED = r"Let's think step by step and output the final answer within \boxed{}."
VERL = {
    "data_source": "lighteval/MATH",
    "prompt": [{"content": f"What is 2 + 2? {BOXED}", "role": "user"}],
    "ability": "math",
    "reward_model": {"ground_truth": "4", "style": "rule"},
    "extra_info": {"index": 7, "split": "train", "question": "What is 2 + 2?"},
}
USER = {"role": "user", "content": "What is 2 + 2?"}
REPLY = {"role": "assistant", "content": r"It is \boxed{4}."}


# --- dotted names
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("extra_info.question", "What is 2 + 2?"),
        ("extra_info.index", 7),
        ("prompt.0.role", "user"),
        ("prompt.-1.role", "user"),
        ("reward_model.ground_truth", "4"),
        ("data_source", "lighteval/MATH"),
    ],
)
def test_dots_lead_into_objects_and_lists(field, value):
    assert get_field(VERL, field) == value


def test_a_field_with_a_dot_in_its_name_comes_first():
    assert get_field({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_problem_and_an_answer_may_be_inside_of_objects(tmp_path, write):
    file = write(tmp_path / "f", [VERL, VERL])
    task = Math(
        test=str(file),
        problem_field="extra_info.question",
        answer_field="reward_model.ground_truth",
    )
    assert [(p.answer, p.chat) for p in task.problems("test")] == [("4", False)] * 2
    assert task.problems("test")[0].prompt.startswith("What is 2 + 2?\nPlease reason step by step")


@pytest.mark.parametrize(
    ("row", "fields", "line"),
    [
        (VERL, ("extra.question", None), "problem_field: must be one of 'data_source', 'prompt', "),
        (
            VERL,
            ("extra_info.problem", None),
            "problem_field: must be one of 'extra_info.index', 'extra_info.split', "
            "'extra_info.question', got 'extra_info.problem'",
        ),
        (
            VERL,
            ("prompt", "reward_model.answer"),
            "answer_field: must be one of 'reward_model.ground_truth', 'reward_model.style', got ",
        ),
        (
            VERL | {"extra_info": None},
            ("extra_info.question", None),
            "'extra_info': must be an object with 'question', got None",
        ),
        (
            VERL | {"extra_info": "text"},
            ("extra_info.question", None),
            "'extra_info': must be an object with 'question', got 'text'",
        ),
        (VERL, ("prompt.3.content", None), "'prompt': must have an item 3, got a list of 1"),
        (VERL, ("prompt.0.text", None), "'prompt.0.text': must be one of the fields 'prompt.0.con"),
        (VERL, ("prompt.content", None), "'prompt': must be an object with 'content', got [{"),
        (
            {"q": "a", "a": 1},
            (None, None),
            "problem_field: must be one of 'q', 'a', got null, for which none of problem, ",
        ),
        (
            {"problem": "a", "a": 1},
            (None, None),
            "answer_field: must be one of 'problem', 'a', got null, for which none of answer, ",
        ),
        ({"a": 1}, ("problem", "a"), "problem_field: must be one of 'a', got 'problem'"),
    ],
)
def test_a_field_that_is_not_there_is_one_line_with_those_that_are(tmp_path, row, fields, line):
    file = write_jsonl(tmp_path / "f.jsonl", [row])
    with pytest.raises(ValueError) as error:
        read_examples([file], *fields)
    assert str(error.value).startswith(f"{file}:1: {line}") and "\n" not in str(error.value)


# --- fields found by name
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "problem", "answer"),
    [
        (VERL, "prompt", "reward_model.ground_truth"),
        ({"prompt": [USER], "answer": "4"}, "prompt", "answer"),
        ({"prompt": [USER], "solution": "$4$"}, "prompt", "solution"),
        ({"prompt": "What?", "answer": "4"}, "prompt", "answer"),
        ({"messages": [USER], "answer": "4"}, "messages", "answer"),
        ({"messages": [USER, REPLY]}, "messages", "messages.-1.content"),
        ({"question": "What?", "answer": "#### 4"}, "question", "answer"),
        ({"problem": "What?", "solution": "s", "answer": "4", "messages": []}, "problem", "answer"),
        ({"question": "What?", "final_answer": "4", "r1_solution_1": "s"}, "question", "final_an"),
        ({"prompt": [USER], "ground_truth": "4"}, "prompt", "ground_truth"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "4"}]},
            "conversations",
            "conversations.-1.value",
        ),
    ],
)
def test_the_fields_of_common_formats_are_found(row, problem, answer):
    found = find_fields(row, None, None)
    assert found.problem == problem and found.answer.startswith(answer)
    assert found.named == (False, False)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"problem": "a", "answer": None, "solution": "long"}, "answer"),
        ({"problem": "a", "reward_model": None, "solution": "long"}, "reward_model.ground_truth"),
        ({"problem": "a", "reward_model": {}, "solution": "long"}, "solution"),
    ],
)
def test_a_null_in_the_first_row_does_not_change_the_field(row, answer):
    assert find_fields(row, None, None).answer == answer


def test_a_named_field_is_not_looked_for():
    assert find_fields(VERL, "extra_info.question", None) == Fields(
        "extra_info.question", "reward_model.ground_truth", (True, False)
    )
    assert find_fields({"problem": "a", "answer": 1, "x": 2}, None, "x").answer == "x"


@pytest.mark.parametrize(
    ("value", "answer"), [(["4"], "4"), ([4.0], "4"), ("4", "4"), (" 4 ", "4"), (-4, "-4")]
)
def test_an_answer_may_be_a_list_of_one(value, answer):
    assert take_answer({"a": value}, "a") == answer


@pytest.mark.parametrize("value", [[], ["4", "5"], [None], {"a": 1}, [["4"]]])
def test_an_answer_of_several_parts_is_refused(value):
    with pytest.raises(ValueError, match=r"^'a': must be a number or a non-empty text, got"):
        take_answer({"a": value}, "a")


def test_data_show_says_how_each_field_was_found(tmp_path, capsys):
    for row, lines in (
        (VERL, ["problem field 'prompt', found by its name",
                "answer field 'reward_model.ground_truth', found by its name",
                "chat messages 1 of 1 prompts; 0 with a system message, 0 with several turns",
                r"prompts 1 of 1 ask for \boxed{}"]),
        ({"messages": [{"role": "system", "content": "Be brief."}, USER, REPLY]},
         ["problem field 'messages', found by its name",
          "answer field 'messages.-1.content', the last message of the assistant",
          "1 with a system message", "0 of 1 ask for", "system: Be brief.",
          "user: What is 2 + 2?", "right answer '4', extracted from"]),
        ({"problem": "P?", "answer": 4}, ["problem field 'problem', found by its name"]),
        ({"question": "P?", "answer": "#### 4"}, ["problem field 'question', found by its name"]),
        ({"prompt": "P?", "solution": "4"}, ["answer field 'solution', found by its name",
                                              "0 of 1 ask for"]),
    ):  # fmt: skip
        file = write_parquet(tmp_path / "f.parquet", [row])
        assert main(["data", "show", str(file)]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert [line for line in lines if line not in out] == []


def test_data_show_says_nothing_of_fields_that_were_named(tmp_path, capsys):
    file = write_jsonl(tmp_path / "f.jsonl", [VERL])
    fields = ("--problem_field", "extra_info.question", "--answer_field", "extra_info.index")
    assert main(["data", "show", str(file), *fields]) == 0
    out = capsys.readouterr().out
    assert "found by" not in out and "right answer '7'" in out


def test_data_show_shows_every_split_of_a_directory(tmp_path, capsys):
    for split in ("train", "test"):
        for i in range(2):
            name = f"{split}-{i:05}-of-00002.jsonl"
            write_jsonl(tmp_path / name, [{"problem": f"{split} {i}", "answer": i}])
    assert main(["data", "show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for split in ("train", "test"):
        assert f"{tmp_path} {split}: 2 problems in 2 files" in out
        assert f"== {tmp_path} {split} 1, right answer '1'\n{split} 1\n" in out


# --- rows that are left out
# ------------------------------------------------------------------------------------------

INVALID = [
    ({"problem": "P?"}, "answer_field: must be one of 'problem', got 'answer'"),
    ({"problem": "", "answer": 1}, "'problem': must be a non-empty text, got ''"),
    ({"problem": None, "answer": 1}, "'problem': must be a non-empty text, got None"),
    ({"problem": "P?", "answer": None}, "'answer': must be a number or a non-empty text, got None"),
    ({"problem": "P?", "answer": " "}, "'answer': must be a number or a non-empty text, got ' '"),
    ({"answer": 1}, "problem_field: must be one of 'answer', got 'problem'"),
    ({"problem": [{"role": "robot"}], "answer": 1}, "'problem[0]': must have a 'role' of system"),
]


@pytest.mark.parametrize(("row", "line"), INVALID)
def test_an_invalid_row_is_an_error_or_is_left_out_and_counted(tmp_path, caplog, row, line):
    good = [{"problem": f"P{i}?", "answer": i} for i in range(3)]
    file = write_jsonl(tmp_path / "f.jsonl", [good[0], row, good[1], row, good[2]])
    with pytest.raises(ValueError) as error:
        Math(test=str(file)).problems("test")
    assert str(error.value).startswith(f"{file}:2: {line}")
    with caplog.at_level(logging.WARNING):
        problems = Math(test=str(file), invalid_rows="skip").problems("test")
    # A row keeps its id, so that the samples of the others do not depend on it.
    assert [(problem.id, problem.answer) for problem in problems] == [(0, "0"), (2, "1"), (4, "2")]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        f"{file}: 2 of 5 rows are left out as invalid, the first is {file}:2: {line}"
    )


def test_the_first_row_may_be_the_invalid_one(tmp_path):
    rows = [{"problem": None}, {"problem": "P?", "answer": 1}]
    file = write_jsonl(tmp_path / "f.jsonl", rows)
    examples = read_examples([file], skip_invalid=True)
    assert (len(examples.rows), examples.left_out) == (1, 1)


def test_a_file_without_a_valid_row_is_refused(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [{"problem": "P?", "answer": None}] * 2)
    with pytest.raises(ValueError, match=rf"^{file}:1: .*; none of the 2 rows is valid$"):
        read_examples([file], skip_invalid=True)


@pytest.mark.parametrize("content", [b"{\n", b"\xff\n", b"[1]\n"])
def test_a_file_that_cannot_be_read_is_an_error_all_the_same(tmp_path, content):
    file = tmp_path / "f.jsonl"
    file.write_bytes(json.dumps({"problem": "P?", "answer": 1}).encode() + b"\n" + content)
    with pytest.raises(ValueError, match=rf"^{file}:2: must be "):
        read_examples([file], skip_invalid=True)


def test_data_show_counts_the_rows_left_out(tmp_path, capsys):
    rows = [{"problem": "P?", "answer": 1}, {"problem": "P?", "answer": None}]
    file = write_jsonl(tmp_path / "f.jsonl", rows)
    assert main(["data", "show", str(file), "--invalid_rows", "skip"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "left out 1 of 2 rows are left out as invalid, the first is" in out
