"""First tokens of steps: by hand for each rule, and what no rule may mark."""

import numpy as np
import pytest

from entropy_rl.analysis.steps import first_tokens


def spans_of(pieces):
    ends = np.cumsum([len(piece) for piece in pieces])
    return np.stack([ends - [len(piece) for piece in pieces], ends], axis=1)


def marked(pieces, rule, count=1):
    found = first_tokens("".join(pieces), spans_of(pieces), rule, count)
    return [piece for piece, first in zip(pieces, found, strict=True) if first]


PIECES = ["First", " a", ".", " Then", " b", "?", "\n\n", "So", " 3", ".", "5", "\n", "End", "."]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sentence", ["First", " Then"]),
        ("paragraph", ["First", "So"]),
        ("line", ["First", "So", "End"]),
    ],
)
def test_each_rule_marks_the_first_token_of_its_steps(rule, expected):
    assert marked(PIECES, rule) == expected


def test_more_tokens_of_a_step_are_marked_but_none_of_the_next():
    assert marked(["a", ".", " b", ".", " c", " d", " e"], "sentence", 2) == [
        *("a", "."), *(" b", "."), *(" c", " d"),
    ]  # fmt: skip
    assert marked(["a", "\n", "b", "\n", "c"], "line", 5) == ["a", "\n", "b", "\n", "c"]


def test_tokens_without_text_and_white_space_before_a_step_are_not_first():
    assert marked(["", " ", "x", ".", " ", "", "y", ""], "sentence") == ["x", "y"]
    assert marked(["a", ".", "  \n", " ", "b"], "sentence") == ["a", "b"]
    assert marked([" ", "\n"], "line") == []


def test_two_steps_in_one_token_are_marked_once():
    assert marked(["a. b. c", ". d"], "sentence") == ["a. b. c", ". d"]
