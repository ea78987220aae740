"""What a task or a check may return for a completion, and what is refused."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from entropy_rl.tasks import as_judgement
from entropy_rl.tasks.judging import as_judgements, correct_at
from entropy_rl.tasks.pool import VerifierPool
from entropy_rl.tasks.task import JudgeError, Judgement, Problem, Verdict

CORRECT, WRONG, UNPARSABLE, TIMEOUT, CRASH, NOT_JUDGED = Verdict
NAN = float("nan")


def grade(kind: str):
    """The check of the pool in these tests."""
    return {
        "graded": Judgement(WRONG, 0.25, {"steps": 3}),
        "half": 0.5,
        "yes": True,
        "none": None,
        "nan": NAN,
        "two": 2,
    }[kind]


@pytest.mark.parametrize(
    ("value", "judgement"),
    [
        (UNPARSABLE, Judgement(UNPARSABLE)),
        (True, Judgement(CORRECT)),
        (np.False_, Judgement(WRONG)),
        (None, Judgement(NOT_JUDGED)),
        (1.0, Judgement(CORRECT, 1.0)),
        (1, Judgement(CORRECT, 1.0)),
        (np.float32(0.5), Judgement(WRONG, 0.5)),
        (0, Judgement(WRONG, 0.0)),
        (Judgement(WRONG, np.float32(3), {"a": True}), Judgement(WRONG, 3.0, {"a": 1.0})),
        (Judgement(TIMEOUT), Judgement(TIMEOUT)),
    ],
)
def test_a_verdict_a_bool_a_grade_none_and_a_judgement_are_judgements(value, judgement):
    found = as_judgement(value)
    assert found == judgement and type(found.reward) is type(judgement.reward)


def test_a_grade_is_correct_from_the_threshold_of_the_task_on():
    verdicts = [as_judgement(value, 0.5).verdict for value in (0.49, 0.5, 1.0)]
    assert verdicts == [WRONG, CORRECT, CORRECT]
    assert correct_at(SimpleNamespace(correct_at=0.5)) == 0.5 and correct_at(object()) == 1.0
    with pytest.raises(ValueError, match=r"correct_at: must be a number > 0 and <= 1, got 2$"):
        correct_at(SimpleNamespace(correct_at=2))


ONE = "must be a Verdict, a Judgement, a bool, a number from 0 to 1, or None, got "
WRONG_VALUES = [
    (NAN, ONE + "nan"),
    (1.5, ONE + "1.5"),
    (-1, ONE + "-1"),
    ("correct", ONE + "'correct'"),
    (Judgement("correct"), "verdict must be a Verdict, got 'correct'"),
    (Judgement(CORRECT, NAN), "reward must be a finite number, got nan"),
    (Judgement(CORRECT, 1e39), "reward must be a finite number, got 1e+39"),
    (Judgement(TIMEOUT, 0.5), "reward must be None with the verdict timeout, got 0.5"),
    (Judgement(CORRECT, 1, {"a": NAN}), "parts['a'] must be a finite number, got nan"),
    (
        Judgement(CORRECT, 1, {"graded": 1}),
        "parts must have names other than 'graded', got 'graded'",
    ),
    (Judgement(CORRECT, 1, 2), "parts must be numbers by name, got 2"),
    *[
        (
            Judgement(CORRECT, 1, turns=turns),
            f"turns must be 0, as rewards of turns are those of observations, got {turns!r}",
        )
        for turns in (0.5, "0", NAN, None)
    ],
]


@pytest.mark.parametrize(("value", "message"), WRONG_VALUES)
def test_anything_else_is_refused_with_the_value_and_the_problem(value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_judgement(value)
    problems = [Problem(i, "", "") for i in (7, 9)]
    with pytest.raises(JudgeError, match=f"^T.judge: problem 9: {re.escape(message)}$"):
        as_judgements("T.judge", problems, [True, value])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([True], "one judgement for each of 2 completions, got 1"),
        ([True] * 3, "one judgement for each of 2 completions, got 3"),
        ("ab", "must return a list, got 'ab'"),
        (None, "must return a list, got None"),
        ({True, False}, "must return a list, got {False, True}"),
        (np.array(1.0), r"must return a list, got array\(1.\)"),
    ],
)
def test_a_wrong_number_of_judgements_is_refused(values, message):
    with pytest.raises(JudgeError, match=rf"^T\.judge: .*{message}$"):
        as_judgements("T.judge", [Problem(0, "", "")] * 2, values)


def test_a_pool_returns_judgements_and_a_value_that_is_none_is_a_crash(caplog):
    with VerifierPool(f"{__name__}:grade", workers=1, correct_at=0.5) as pool:
        found = pool.judge([(kind,) for kind in ("graded", "half", "yes", "none", "nan", "two")])
    assert found == [
        Judgement(WRONG, 0.25, {"steps": 3.0}),
        Judgement(CORRECT, 0.5),
        Judgement(CORRECT),
        Judgement(NOT_JUDGED),
        Judgement(CRASH),
        Judgement(CRASH),
    ]
    reasons = [record.getMessage() for record in caplog.records]
    assert any(ONE + "nan" in reason for reason in reasons)


def test_the_verdicts_of_earlier_runs_keep_their_codes():
    # Arrays of checkpoints and exchanges hold indices.
    assert [verdict.value for verdict in Verdict] == [
        *("correct", "wrong", "unparsable", "timeout", "crash", "not_judged")
    ]
