"""Questions of several expressions: splits, worked examples, and the judge on hand-written text."""

import collections
import itertools
import re
import time

import pytest

from entropy_rl.tasks import load_task
from entropy_rl.tasks.arithmetic import Arithmetic
from entropy_rl.tasks.arithmetic.judge import read_equations
from entropy_rl.tasks.task import AnsweringTask, ProbedTask, Problem, Verdict

TASK = Arithmetic()
SPLITS = ("train", "validation", "test", "unseen")
PROBLEM = Problem(0, "Calculate 5 * 9 and 7 - 9.", "5 * 9 = 45, 7 - 9 = -2")
THREE = Problem(1, "Calculate 4 + 5 - 8.", "4 + 5 - 8 = 1")


def verdict(completion: str, problem: Problem = PROBLEM) -> Verdict:
    return TASK.judge([problem], [completion])[0]


def expressions(question: str) -> list[str]:
    return re.split(r", | and ", question.removeprefix("Calculate ").removesuffix("."))


def orderings(question: str) -> frozenset[str]:
    """All ways to write a question with its expressions and their terms in another order."""
    ways = []
    for expression in expressions(question):
        if "*" in expression:
            factors = expression.split(" * ")
            ways.append({" * ".join(order) for order in itertools.permutations(factors)})
        else:
            terms = re.findall(r"[+-]\d+", "+" + expression.replace(" ", ""))
            terms = ["+0" if term == "-0" else term for term in terms]
            ways.append({"".join(order) for order in itertools.permutations(terms)})
    return frozenset(
        ", ".join(order)
        for chosen in itertools.product(*ways)
        for order in itertools.permutations(chosen)
    )


# --- the questions
# ----------------------------------------------------------------------------------------


def test_no_question_comes_twice_in_any_order_in_any_of_the_splits():
    forms = [orderings(p.prompt) for split in SPLITS for p in TASK.problems(split)]
    assert len(set(forms)) == len(forms) == 2048 + 3 * 128
    # The forms of two questions are the same set, or have nothing in common.
    assert len(set().union(*forms)) == sum(map(len, forms))


def test_splits_are_apart_for_other_kinds_too():
    # Short numbers are among those of up to two digits: a question may be of two kinds.
    one = Arithmetic(kinds=[{"expressions": ["sum", "product"]}])
    two = Arithmetic(kinds=[{"expressions": ["product", "sum_2_digits"]}], seed=1)
    tested = {orderings(p.prompt) for p in one.problems("test")}
    assert tested.isdisjoint(orderings(p.prompt) for p in two.problems("train"))


def test_a_question_has_no_expression_twice_and_none_of_its_examples():
    for split in SPLITS:
        for problem in TASK.problems(split):
            shown = [
                e for role, text in problem.messages if role == "user" for e in expressions(text)
            ]
            asked = [orderings(f"Calculate {e}.") for e in expressions(problem.prompt)]
            assert len(set(asked)) == len(asked)
            assert not set(asked) & {orderings(f"Calculate {e}.") for e in shown}


def test_kinds_alternate_by_their_shares():
    shares = [{"expressions": ["product"]}, {"expressions": ["sum", "sum_2_digits"], "share": 2}]
    problems = Arithmetic(kinds=shares, counts={"train": 9}).problems("train")
    assert [len(expressions(problem.prompt)) for problem in problems] == [1, 2, 2] * 3
    counts = collections.Counter(
        re.sub(r"\d+|[+-]", "#", p.prompt) for p in TASK.problems("validation")
    )
    assert counts == {
        "Calculate # * # and # * #.": 32,
        "Calculate # # # and # # #.": 32,
        "Calculate # * # and # # #.": 32,
        "Calculate # * #, # * # and # # #.": 32,
    }


def test_a_question_depends_on_seed_split_and_index_only():
    few, other = Arithmetic(counts={"test": 7}), Arithmetic(seed=1)
    assert tuple(few.problems("test")) == TASK.problems("test")[:7]
    assert TASK.problems("test")[0].prompt == "Calculate 8 * 9 and 0 * 2."  # on any machine
    assert other.problems("test")[:7] != TASK.problems("test")[:7]


def test_examples_are_turns_of_the_chat_with_right_solutions():
    problem = TASK.problems("test")[2]
    assert problem.chat and problem.messages == (
        ("user", "Calculate 5 * 9 and 34 + 52."),
        ("assistant", "5 * 9 = 45. 34 + 52 = 86. Answer: 45, 86"),
        ("user", "Calculate 4 * 7 and 17 - 46."),
        ("assistant", "4 * 7 = 28. 17 - 46 = -29. Answer: 28, -29"),
    )
    steps = TASK.problems("unseen")[0].messages
    assert steps[1] == ("assistant", "4 + 8 = 12. 12 - 3 = 9. Answer: 9")
    text = Arithmetic(examples=1, chat=False).problems("test")[2]
    shown = "Calculate 5 * 9 and 34 + 52.\n5 * 9 = 45. 34 + 52 = 86. Answer: 45, 86\n\n"
    assert (text.chat, text.prompt) == (False, f"{shown}{problem.prompt}\n")


def test_the_solution_of_every_question_is_correct():
    for split in SPLITS:
        for problem in TASK.problems(split):
            equations = problem.answer.split(", ")
            assert [e.split(" = ")[0] for e in equations] == expressions(problem.prompt)
            assert all(eval(e.replace("=", "==")) for e in equations)
            assert verdict(problem.answer, problem) is Verdict.CORRECT


# --- the judge
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("5 * 9 = 45. 7 - 9 = -2. Answer: 1, 1", "correct"),  # the equations count, not the answer
        ("- 5*9=45\n- 7-9=-2\n", "correct"),
        ("7 - 9 = -2 and 5 * 9 = 45, so 5 * 9 = 46", "correct"),  # the first equation counts
        ("5 * 9 = 46. No: 5 * 9 = 45. 7 - 9 = -2.", "wrong"),
        ("5 * 9 = 45.", "wrong"),
        ("5 * 9 = 45. 7 - 9 = 2.", "wrong"),
        ("9 * 5 = 45. 7 - 9 = -2.", "wrong"),  # not what was asked
        ("5 * 9 = 45.0. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45 = 46. 7 - 9 = -2", "correct"),
        ("5 × 9 = 45. 7 - 9 = -2", "correct"),  # noqa: RUF001
        ("5·9 = 45, 7 - 9 = -2", "correct"),
        (r"5 \times 9 = 45, 7-9=-2", "correct"),
        (r"$5 \cdot 9 = 45$ and $7 - 9 = -2$.", "correct"),
        ("**5 * 9 = 45** and **7 - 9 = -2**", "correct"),
        ("5 * 9 = **45**, 7 - 9 = **-2**", "correct"),
        ("**5 * 9** = 45, 7 - 9 = *-2*", "correct"),
        ("5 * 9 = 45 - and 7 - 9 = -2 -", "correct"),  # a dash
        ("5 * 9 = 45 -\n7 - 9 = -2", "correct"),
        (r"$5 * 9 = \boxed{45}$, $7 - 9 = \boxed{-2}$", "correct"),
        (r"\boxed{5 * 9 = 45} \boxed{7 - 9 = -2}", "correct"),
        (r"\begin{aligned}5 \times 9 &= 45 \\ 7 - 9 &= -2\end{aligned}", "correct"),
        ("5 x 9 = 45. 7 - 9 = -2", "correct"),
        ("5x9=45, 7-9=-2", "correct"),
        (r"5 \* 9 = 45. 7 - 9 = -2", "correct"),
        ("5 * 9 = **46**. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45 - x. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45 * (2). 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45 + .5, 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45**-2. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45 ** 2. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45 - -(2). 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45 - I see, 7 - 9 = -2", "correct"),
        ("5 ** 9 = 45.", "unparsable"),
        ("5 * 9 = 45! 7 - 9 = -2!", "correct"),  # the end of a sentence
        ("5 * 9 = 45,000. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45,7 - 9 = -2", "correct"),
        ("5 * 9 = 45/1. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45^2. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45**2. 7 - 9 = -2", "wrong"),
        ("5 * 9 = 45e3. 7 - 9 = -2", "wrong"),
        ("15 * 9 = 45. 3 + 5 * 9 = 45. -5 * 9 = 45. 1.5 * 9 = 45.", "unparsable"),
        ("Answer: 45, -2", "unparsable"),
        ("5 * 9 =\n45", "unparsable"),
        ("5 * 9 = = 45", "unparsable"),
        ("\u0665 * \u0669 = \u0664\u0665", "unparsable"),
        ("", "unparsable"),
    ],
)
def test_verdicts(completion, expected):
    assert verdict(completion).value == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("4 + 5 - 8 = 1", "correct"),
        ("4 + 5 = 9. 9 - 8 = 1.", "correct"),
        ("4 + 5 - 8 = 9 - 8 = 1", "correct"),
        ("4 + 5 = 9. 9 - 8 = 2.", "wrong"),
        ("4 + 5 = 8. 8 - 8 = 0.", "wrong"),
        ("9 - 8 = 1", "unparsable"),
    ],
)
def test_three_terms_may_be_evaluated_in_steps(completion, expected):
    assert verdict(completion, THREE).value == expected


def test_reading_is_linear_in_the_length_of_the_text():
    """Ten times the text takes at most thirty times the time; quadratic would be a hundred."""

    def seconds(text: str) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            read_equations(text)
            times.append(time.process_time() - start)
        return min(times)

    parts = ["1+", "1=", "-", "1.1.", "=\n", "9", "\u0663=", "1 - ", "9,999", "1/", "1e"]
    for part in (*parts, "**", "1 x ", "1-x"):
        assert seconds(part * 10_000) < 30 * max(seconds(part * 1_000), 1e-4), part
    assert verdict(f"5 * 9 = {'9' * 100_000}. 7 - 9 = -2") is Verdict.WRONG


# --- measures
# ---------------------------------------------------------------------------------------------


def test_probe_counts_single_equations_by_hand():
    completions = ["5 * 9 = 45. 7 - 9 = 2.", "5 * 9 = 46.", "", "4 + 5 = 9. 9 - 8 = 1."]
    problems = [PROBLEM, PROBLEM, PROBLEM, THREE]
    assert TASK.probe(problems, completions) == {
        "equations": (2, 4),
        "answered": (4, 7),
        "products": (1, 2),
        "sums": (0, 0),
        "differences": (1, 2),
    }


def test_final_answers_are_equal_for_the_same_equations():
    texts = ["7 - 9 = -2. 5*9 = 45. Answer: 45", "5 * 9 = 45\n7 - 9 = -2", "5 * 9 = 4", "none"]
    found = TASK.final_answers(texts)
    assert found == ["5 * 9 = 45, 7 - 9 = -2"] * 2 + ["5 * 9 = 4", None]


def test_it_is_a_built_in_task():
    task = load_task("arithmetic", {"examples": 0})
    assert isinstance(task, ProbedTask) and isinstance(task, AnsweringTask)
    assert task.problems("test")[0].messages == ()


# --- wrong arguments
# --------------------------------------------------------------------------------------


KIND = {"expressions": ["sum", "sum"]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"seed": "0"}, "seed: must be an integer, got '0'"),
        ({"counts": 5}, "counts: must be a mapping from splits, got 5"),
        ({"counts": {"tets": 5}}, "counts: must be one of train, validation, test, unseen, got"),
        ({"counts": {"test": 0}}, "counts.test: must be an integer >= 1, got 0"),
        ({"kinds": []}, "kinds: must be a non-empty list, got []"),
        ({"kinds": ["sum"]}, "kinds[0]: must be a mapping with a field 'expressions', got 'sum'"),
        ({"kinds": [{**KIND, "weight": 1}]}, "kinds[0]: must be one of expressions, share, got"),
        ({"kinds": [{**KIND, "share": 0.5}]}, "kinds[0].share: must be an integer >= 1, got 0.5"),
        ({"kinds": [{"expressions": "sum"}]}, "kinds[0].expressions: must be a list of 1 to 8"),
        ({"kinds": [{"expressions": []}]}, "kinds[0].expressions: must be a list of 1 to 8 types"),
        ({"kinds": [{"expressions": ["sums"]}]}, "kinds[0].expressions[0]: must be one of product"),
        (
            {"kinds": [{"expressions": [["sum"]]}]},
            "kinds[0].expressions[0]: must be one of product",
        ),
        ({"unseen_kinds": [KIND, {}]}, "unseen_kinds[1]: must be a mapping with a field"),
        ({"examples": 9}, "examples: must be an integer in 0..8, got 9"),
        ({"chat": 1}, "chat: must be true or false, got 1"),
    ],
)
def test_a_bad_argument_is_named(args, message):
    with pytest.raises(ValueError) as caught:
        Arithmetic(**args)
    assert str(caught.value).startswith(f"task.args.{message}")
    assert "\n" not in str(caught.value)


def test_a_split_that_runs_out_of_questions_says_how_many_there_are():
    # Of 55 products four are examples; the others are in three splits.
    task = Arithmetic(kinds=[{"expressions": ["product"]}], examples=4, counts={"train": 55})
    with pytest.raises(
        ValueError, match=r"^task.args.counts.train: must be at most \d\d, .* product, got 55$"
    ):
        task.problems("train")


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(ValueError, match=r"^split: must be one of train, validation, test, unseen"):
        TASK.problems("dev")
