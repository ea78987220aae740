"""Prompts of data that are chat messages: verl's and TRL's files, system texts, what is refused."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from math_files import DAPO_SCHEMA, dapo_row, write_jsonl, write_parquet

from entropy_rl.cli.main import main
from entropy_rl.tasks.data_files.messages import is_messages, read_messages, split_prompt
from entropy_rl.tasks.math import Math
from entropy_rl.tasks.task import Verdict

BOXED = r"Let's think step by step and output the final answer within \boxed{}."
ADDED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
SYSTEM = ("system", "You are a mathematician.")


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def verl(prompt: list[dict], answer: str = "4") -> dict:
    return {
        "data_source": "lighteval/MATH",
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": 0, "split": "train"},
    }


ASKED = message("user", f"What is 2 + 2? {BOXED}")
SHORT = message("user", "What is 2 + 2?")


def write_gz(path: Path, rows: list[dict]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


WRITE = {"parquet": write_parquet, "jsonl": write_jsonl, "jsonl.gz": write_gz}


# --- by naming the file alone
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize(
    ("row", "before", "prompt"),
    [
        (verl([ASKED]), (), ASKED["content"]),
        (verl([message(*SYSTEM), ASKED]), (SYSTEM,), ASKED["content"]),
        ({"prompt": [ASKED], "answer": "4"}, (), ASKED["content"]),
        ({"prompt": [ASKED], "solution": "$4$"}, (), ASKED["content"]),
        ({"prompt": [SHORT], "solution": r"so \boxed{4}"}, (), SHORT["content"] + ADDED),
        ({"messages": [SHORT], "answer": 4}, (), SHORT["content"] + ADDED),
        ({"messages": [ASKED, message("assistant", r"\boxed{4}")]}, (), ASKED["content"]),
        (
            {
                "prompt": [
                    message("system", f"{SYSTEM[1]} {BOXED}"),
                    message("user", "Hello."),
                    message("assistant", "Hello, what is the problem?"),
                    SHORT,
                ],
                "answer": "4",
            },
            (
                ("system", f"{SYSTEM[1]} {BOXED}"),
                ("user", "Hello."),
                ("assistant", "Hello, what is the problem?"),
            ),
            SHORT["content"],
        ),
    ],
)
def test_a_file_of_messages_works_by_its_name_alone(tmp_path, kind, row, before, prompt):
    file = WRITE[kind](tmp_path / f"train.{kind}", [row, row])
    task = Math(train=str(file))
    problems = task.problems("train")
    assert [(p.id, p.messages, p.prompt, p.chat) for p in problems] == [
        (0, before, prompt, True),
        (1, before, prompt, True),
    ]
    assert task.judge(problems, [r"\boxed{4}", r"\boxed{5}"]) == [Verdict.CORRECT, Verdict.WRONG]
    task.close()


@pytest.mark.parametrize(
    ("text", "prompt"),
    [("What is 2 + 2?", "What is 2 + 2?" + ADDED), (f"2 + 2? {BOXED}", f"2 + 2? {BOXED}")],
)
def test_a_text_in_the_field_prompt_is_a_whole_prompt(tmp_path, text, prompt):
    file = write_jsonl(tmp_path / "f.jsonl", [{"prompt": text, "answer": "4"}])
    (problem,) = Math(train=str(file)).problems("train")
    assert (problem.prompt, problem.chat) == (prompt, False)


def test_a_text_in_another_field_gets_the_instruction_in_any_case(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [{"problem": r"Fill \boxed{}.", "answer": "4"}])
    (problem,) = Math(train=str(file)).problems("train")
    assert problem.prompt == r"Fill \boxed{}." + ADDED


@pytest.mark.parametrize("prompt", ["boxed", r"{problem} Use \boxed{}.", "Q: {problem} \\boxed"])
def test_a_prompt_of_the_config_is_put_around_the_message(tmp_path, prompt):
    file = write_jsonl(tmp_path / "f.jsonl", [verl([ASKED])])
    (problem,) = Math(train=str(file), prompt=prompt).problems("train")
    template = "{problem}" + ADDED if prompt == "boxed" else prompt
    assert problem.prompt == template.replace("{problem}", ASKED["content"])


def test_prompts_that_get_the_instruction_are_counted_in_the_log(tmp_path, caplog):
    rows = [verl([ASKED]), verl([SHORT]), verl([message("user", 'End with "####".')])]
    file = write_jsonl(tmp_path / "f.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        Math(train=str(file)).problems("train")
    assert f"{file}: 2 of 3 prompts do not ask for \\boxed; `boxed` of " in caplog.text


def test_a_verifier_of_ones_own_gets_the_prompt_of_the_data(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [verl([SHORT])])
    task = Math(train=str(file), verifier="math:isqrt")
    assert task.problems("train")[0].prompt == SHORT["content"]
    task.close()


def test_dapo_s_file_is_judged_by_its_verifier_which_the_log_names(tmp_path, caplog):
    row = dapo_row("2 + 2?", "4", "i")
    file = write_parquet(tmp_path / "dapo.parquet", [row], DAPO_SCHEMA)
    for verifier in ("dapo", None):
        assert not caplog.text
        task = Math(train=str(file), verifier=verifier)
        (problem,) = task.problems("train")
        assert problem.chat and problem.prompt == row["prompt"][0]["content"]
        assert task.judge([problem], ["Answer: 4"]) == [Verdict.CORRECT]
        assert task.final_answers(["Answer: 4"]) == ["4"]
    assert f"task.args.verifier: dapo, because of data_source and prompts of {file}" in caplog.text


@pytest.mark.parametrize("name", ["math_dapo_reasoning", "aime", "aime2024", "aime_2025"])
def test_names_that_verl_judges_by_dapo_s_rule_choose_it(tmp_path, name):
    row = dapo_row("2 + 2?", "4", "i") | {"data_source": name}
    file = write_jsonl(tmp_path / "f.jsonl", [row])
    task = Math(train=str(file), test=[str(file)])
    assert task.judge(task.problems("test"), ["Answer: 4"]) == [Verdict.CORRECT]


def test_dapo_s_prompts_without_its_data_source_on_all_files_are_refused(tmp_path):
    row = dapo_row("2 + 2?", "4", "i")
    file = write_jsonl(tmp_path / "dapo.jsonl", [row])
    others = [row | {"data_source": name} for name in ("mine", None, 5, "my_math_dapo")]
    others.append({name: value for name, value in row.items() if name != "data_source"})
    for other in others:
        path = write_jsonl(tmp_path / "other.jsonl", [other])
        with pytest.raises(
            ValueError, match=r"^task.args.verifier: must be dapo or module:function"
        ):
            Math(train=str(file), test=str(path)).problems("train")


def test_dapo_s_problems_with_another_prompt_are_judged_by_math_verify(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [dapo_row("2 + 2?", "4", "i")])
    task = Math(train=str(file), prompt="boxed")
    assert task.judge(task.problems("train"), [r"\boxed{4.0}"]) == [Verdict.CORRECT]
    task.close()
    both = message("user", "2 + 2? Answer: $Answer in \\boxed{}.")
    for asked in (ASKED, both):
        row = verl([asked]) | {"data_source": "math_dapo"}
        task = Math(train=str(write_jsonl(tmp_path / "g.jsonl", [row])))
        assert task.final_answers([r"\boxed{4}", "Answer: 4"]) == ["4", None]
        task.close()


# --- settings of chat prompts
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [verl([ASKED]), {"problem": "2 + 2?", "answer": "4"}])
def test_a_system_text_goes_before_the_message(tmp_path, row):
    file = write_jsonl(tmp_path / "f.jsonl", [row])
    task = Math(train=str(file), system=SYSTEM[1], chat=True, chat_template_kwargs={"x": False})
    (problem,) = task.problems("train")
    assert problem.messages == (SYSTEM,) and problem.chat_template_kwargs == {"x": False}


@pytest.mark.parametrize(
    ("row", "arguments", "line"),
    [
        (
            verl([message(*SYSTEM), ASKED]),
            {"system": "Be brief."},
            "task.args.system: must be null where the data have a system message, as in ",
        ),
        (
            verl([ASKED]),
            {"chat": False},
            "task.args.chat: must be true or null for lists of messages, as in ",
        ),
        (
            {"problem": "P?", "answer": "4"},
            {"system": "Be brief."},
            "task.args.system: must be null or empty for a text without task.args.chat, as in ",
        ),
        (
            {"problem": "P?", "answer": "4"},
            {"chat_template_kwargs": {"enable_thinking": False}},
            "task.args.chat_template_kwargs: must be null or empty for a text without task.args.",
        ),
    ],
)
def test_a_setting_without_an_effect_on_the_data_is_refused(tmp_path, row, arguments, line):
    file = write_jsonl(tmp_path / "f.jsonl", [row])
    with pytest.raises(ValueError) as error:
        Math(train=str(file), **arguments).problems("train")
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert f"{file}: problem 0" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"chat": False, "system": "Be brief."}, "task.args.system: must be null or empty where "),
        (
            {"chat": False, "chat_template_kwargs": {"x": 1}},
            "task.args.chat_template_kwargs: must be null or empty where task.args.chat is false",
        ),
        ({"system": " "}, "task.args.system: must be null or a non-empty text, got ' '"),
        ({"system": ""}, "task.args.system: must be null or a non-empty text, got ''"),
        (
            {"chat_template_kwargs": {"x": {1, 2}}},
            "task.args.chat_template_kwargs: must be values of JSON, got ",
        ),
    ],
)
def test_settings_of_chat_prompts_are_checked_without_data(arguments, line):
    with pytest.raises(ValueError) as error:
        Math(**arguments)
    assert str(error.value).startswith(line)


# --- messages
# ------------------------------------------------------------------------------------------


def test_the_messages_of_other_formats_are_read():
    assert read_messages(
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "conversations"
    ) == (("user", "a"), ("assistant", "b"))
    # A `Sequence` of `datasets` stores columns.
    assert read_messages({"role": ["system", "user"], "content": ["a", "b"]}, "prompt") == (
        ("system", "a"),
        ("user", "b"),
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "image": None}]
    assert read_messages([{"role": "user", "content": parts, "name": None}], "prompt") == (
        ("user", "ab"),
    )


def test_the_prompt_ends_at_the_last_message_of_the_user():
    messages = (SYSTEM, ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert split_prompt(messages) == (messages[:3], "c")
    assert split_prompt((("user", "a"),)) == ((), "a")


@pytest.mark.parametrize("value", ["text", [], ["a"], None, 3, {"role": "user", "content": "a"}])
def test_other_values_are_no_messages(value):
    assert not is_messages(value)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ([{"role": "robot", "content": "a"}], "'p[0]': must have a 'role' of system, user, assist"),
        ([{"content": "a"}], "'p[0]': must have a 'role' of system, user, assistant, "),
        ([{"role": "user", "content": ""}], "'p[0]': must have a non-empty text as 'content', go"),
        ([{"role": "user", "content": None}], "'p[0]': must have a non-empty text as 'content', "),
        ([{"role": "user", "content": 3}], "'p[0]': must have a non-empty text as 'content', got"),
        (
            [{"role": "user", "content": [{"type": "image", "image": "x"}]}],
            "'p[0]': must have a non-empty text as 'content', got [",
        ),
        ([message(*SYSTEM)], "'p': must have a message of the user, got the roles system"),
        ([SHORT, message(*SYSTEM)], "'p': must have a system message in the first place only"),
        (
            [SHORT, {"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}],
            "'p[1]': must be a message without tool calls, got one with them",
        ),
        ({"role": ["user"], "content": []}, "'p': must have as many contents as roles, got 0 and"),
    ],
)
def test_messages_that_cannot_be_a_prompt_are_one_line(tmp_path, value, line):
    with pytest.raises(ValueError) as error:
        read_messages(value, "p")
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
    file = write_jsonl(tmp_path / "f.jsonl", [{"p": value, "answer": 1}])
    with pytest.raises(ValueError, match=rf"^{file}:1: 'p"):
        Math(train=str(file), problem_field="p").problems("train")


AS_JSON = json.dumps([SHORT])


@pytest.mark.parametrize(
    "text", [AS_JSON, f" {AS_JSON}", str([SHORT]), f"array([{SHORT}], dtype=object)"]
)
@pytest.mark.parametrize("field", ["messages", "prompt", "conversations"])
def test_messages_that_are_a_text_are_no_prompt(tmp_path, text, field):
    file = write_jsonl(tmp_path / "f.jsonl", [{field: text, "answer": "2"}])
    with pytest.raises(ValueError) as error:
        Math(train=str(file)).problems("train")
    line = f"{file}:1: {field!r}: must be a list of messages, decoded as by json.loads, got a text"
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[1, 2] or {3}?", '{"role": 3} is what?', "[{x: 1}] is what?"])
def test_other_texts_with_brackets_are_prompts(tmp_path, text):
    file = write_jsonl(tmp_path / "f.jsonl", [{"prompt": text, "answer": "2"}])
    assert Math(train=str(file)).problems("train")[0].prompt.startswith(text)


@pytest.mark.parametrize("field", ["prompt", "problem", "extra.prompt"])
def test_the_beginning_of_a_completion_is_refused_in_a_prompt(tmp_path, field):
    prompt = [SHORT, message("assistant", "Let me")]
    row = {"extra": {"prompt": prompt}, field: prompt, "answer": "4"}
    file = write_jsonl(tmp_path / "f.jsonl", [row])
    with pytest.raises(ValueError, match=rf"^{file}:1: '{field}': must end with a message of the "):
        Math(train=str(file), problem_field=field).problems("train")
    # The reply may be the answer, and stands in a conversation.
    given = {"answer_field": f"{field}.-1.content"}
    task = Math(train=str(file), problem_field=field, **given)
    assert task.problems("train")[0].answer == "Let me"
    file = write_jsonl(tmp_path / "f.jsonl", [{"messages": prompt, "answer": "4"}])
    assert Math(train=str(file)).problems("train")[0].answer == "4"


def test_where_the_answer_is_the_reply_there_must_be_one(tmp_path):
    rows = [{"messages": [SHORT, message("assistant", "4")]}, {"messages": [SHORT]}]
    file = write_jsonl(tmp_path / "f.jsonl", rows)
    with pytest.raises(ValueError, match=rf"^{file}:2: 'messages': must end with the assistant's"):
        Math(train=str(file)).problems("train")


def test_messages_are_not_prepared_and_the_line_says_what_to_do(tmp_path, capsys):
    file = write_parquet(tmp_path / "f.parquet", [verl([ASKED])])
    where = ["--source", str(file), "--data_dir", str(tmp_path / "data")]
    assert main(["data", "prepare", "mine", *where]) == 2
    err = capsys.readouterr().err
    assert f"{file}: row 1: 'prompt': must be a text to be prepared, got a list of messages" in err
    field = ["--problem_field", "prompt.0.content"]
    assert main(["data", "prepare", "mine", *where, *field]) == 0
    task = Math(train="mine", data_dir=str(tmp_path / "data"))
    assert task.problems("train")[0].prompt.startswith(ASKED["content"])


def test_shards_are_prepared_as_one_set(tmp_path, capsys):
    for i in range(3):
        write_jsonl(tmp_path / f"train-{i:05}-of-00003.jsonl", [{"problem": f"{i}", "answer": i}])
    where = ["--data_dir", str(tmp_path / "data")]
    for source in (f"{tmp_path}/*.jsonl", f"{tmp_path}/train-*"):
        assert main(["data", "prepare", "mine", "--source", source, *where]) == 0
    assert "is already prepared from" in capsys.readouterr().out
    task = Math(train="mine", data_dir=str(tmp_path / "data"))
    assert [problem.answer for problem in task.problems("train")] == ["0", "1", "2"]
