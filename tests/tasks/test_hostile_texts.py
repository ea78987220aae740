"""Texts that could make a regular expression search for ever: the time must be about linear."""

import time

import pytest

from entropy_rl.tasks.arithmetic.judge import read_equations
from entropy_rl.tasks.data_files.formats import file_rows
from entropy_rl.tasks.math.answers import MAX_ANSWER, compare_simple, final_answer, last_boxes
from entropy_rl.tasks.math.dapo import judge_dapo
from entropy_rl.tasks.math.equality.units import read_quantity
from entropy_rl.tasks.math.overlap import split_words
from entropy_rl.tasks.math.right_answers import check_answers, why_unusable
from entropy_rl.tasks.reasoning_gym.task import _last_number, _last_tagged
from entropy_rl.tasks.tools.calls import parse_calls

MOST_S = 2.0  # a search that goes back takes minutes at these lengths, a linear one milliseconds

# What is repeated, with what is before and after it.
REPEATED = [
    *(("5 ", unit, "#") for unit in ("a", "- ", "a ", "a.", "ab-", "km ", "é")),
    *(("5", unit, "#") for unit in (" ", "/", "^2", r"\text{a}", r"\text{", "{}", r"\cdot ", "1,")),
    *(
        ("", unit, "")
        for unit in ("^{2}", "**", "* ", "1 = ", "1,000", "<answer>", r"\boxed{", "{")
    ),
    *(
        ("", unit, "!")
        for unit in ("= ", "1e", "####", r"\boxed{1}, ", "x = ", "<tool_call>", "\n")
    ),
]


def texts(size: int) -> list[str]:
    return [before + unit * (size // len(unit)) + after for before, unit, after in REPEATED]


@pytest.mark.parametrize(
    "read",
    [
        final_answer,
        last_boxes,
        why_unusable,
        lambda text: judge_dapo(text, "42"),
        read_equations,
        _last_tagged,
        _last_number,
        split_words,
        parse_calls,
    ],
    ids=["final", "box", "unusable", "dapo", "equations", "tags", "number", "words", "calls"],
)
def test_a_long_text_is_read_in_linear_time(read):
    started = time.process_time()
    for text in texts(10_000):
        read(text)
    read("<answer>" * 40_000)
    assert time.process_time() - started < MOST_S


@pytest.mark.parametrize(
    "read",
    [why_unusable, read_quantity, lambda text: compare_simple("x+1", text)],
    ids=["unusable", "quantity", "compare"],
)
def test_an_answer_as_long_as_may_be_is_read_at_once(read):
    started = time.process_time()
    for text in texts(MAX_ANSWER - 10):
        read(text)
    assert time.process_time() - started < MOST_S


def test_a_right_answer_with_a_long_unit_is_checked():
    report = check_answers(["42 square kilometers per inhabitant (in 2010)", "2"])
    assert (report.total, report.reason) == (2, "prose with a formula")


def test_the_last_closed_tag_is_the_answer():
    text = "<answer>1</answer> <answer>2</answer> <answer>3"
    assert _last_tagged(text) == "2"
    assert _last_tagged("<answer>1 <answer> 2</answer>") == "2"
    assert _last_tagged("</answer><answer>") is None


def test_a_repeated_key_among_many_is_found_at_once(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{" + "".join(f'"{i}": 1, ' for i in range(100_000)) + '"99999": 2}')
    started = time.process_time()
    with pytest.raises(ValueError, match="each key once, got '99999' twice"):
        list(file_rows(file))
    assert time.process_time() - started < MOST_S
