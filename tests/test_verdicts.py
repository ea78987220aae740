"""What the verifiers of maths say to honest, odd and hostile answers."""

import json
import time
from pathlib import Path

import pytest

from entropy_rl.tasks.maths import Maths
from entropy_rl.tasks.maths.answers import compare_simple, last_boxed
from entropy_rl.tasks.maths.dapo import judge_dapo
from entropy_rl.tasks.task import Problem, Verdict

CORRECT, WRONG, UNPARSABLE = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE
TIMEOUT, CRASH = Verdict.TIMEOUT, Verdict.CRASH
DEADLINE_S = 1.5
VECTOR = r"\begin{%s}1\\2\end{%s}"

# (right answer, content of the box, verdict)
HONEST = [
    # the same text, up to typography
    ("42", "42", CORRECT),
    ("42", " 42 ", CORRECT),
    ("42", "\n42\n", CORRECT),
    ("42", "$42$", CORRECT),
    ("42", "42.", CORRECT),
    ("42", "+42", CORRECT),
    ("5", r"\$5", CORRECT),
    ("x+1", "x + 1", CORRECT),
    (r"\frac{\pi}{2}", r"\dfrac{\pi}{2}", CORRECT),
    ("-1", "\N{MINUS SIGN}1", CORRECT),
    (r"\text{Evelyn}", r"\text{Evelyn}", CORRECT),
    # plain numbers
    ("42", "43", WRONG),
    ("42", "-42", WRONG),
    ("42", "0042", CORRECT),
    ("42", "42.0", CORRECT),
    ("42", "42.5", WRONG),
    ("0.5", ".5", CORRECT),
    ("0", "-0", CORRECT),
    ("1000", "1,000", CORRECT),
    ("1000", "1{,}000", CORRECT),
    ("1000", r"1\,000", CORRECT),
    ("1000", r"1,\!000", CORRECT),
    ("1,234,567", "1234567", CORRECT),
    ("1000", "1.000", WRONG),
    ("42", "4{,}2", WRONG),
    ("12", "1 2", WRONG),
    ("1/2", "0.5", CORRECT),
    (r"\frac{1}{2}", "1/2", CORRECT),
    (r"\frac{1}{2}", r"\frac12", CORRECT),
    (r"\frac{1}{2}", r"\tfrac{2}{4}", CORRECT),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", CORRECT),
    (r"\frac{1}{2}", r"\frac{1}{3}", WRONG),
    ("1/3", "0.333333", CORRECT),
    ("1/3", "0.333", WRONG),
    ("123456789012345678901234567890", "123456789012345678901234567891", WRONG),
    ("42", "42.00000001", WRONG),
    ("42", "1/0", WRONG),
    # expressions
    ("42", r"\frac{84x}{2x}", CORRECT),
    ("42", r"6\cdot 7", CORRECT),
    ("1000000", "10^6", CORRECT),
    ("42", r"\sqrt{1764}", CORRECT),
    (r"2\sqrt{2}", r"\sqrt{8}", CORRECT),
    (r"2\sqrt{2}", r"\sqrt{7}", WRONG),
    (r"1\frac{1}{2}", "1.5", CORRECT),
    ("(x+1)^2", "x^2+2x+1", CORRECT),
    ("(x+1)^2", "x^2+x+1", WRONG),
    (r"\pi", "3.14159265", CORRECT),
    (r"\pi", "3.14", WRONG),
    (r"\sin^2 x+\cos^2 x", "1", CORRECT),
    ("2^{100}", "1267650600228229401496703205376", CORRECT),
    ("x^2", "x^{2}", CORRECT),
    ("x", "y", WRONG),
    ("3", r"\lfloor 3.7\rfloor", CORRECT),
    ("42", r"\left(42\right)", CORRECT),
    ("42", r"\text{42}", CORRECT),
    # equations: the value counts
    ("42", "x=42", CORRECT),
    ("42", "x=43", WRONG),
    ("y=2x+1", "2x+1", CORRECT),
    ("y=2x+1", "y=2x-1", WRONG),
    # units and percent
    ("10", r"10\text{ cm}", CORRECT),
    (r"10\text{ cm}", "10", CORRECT),
    ("90", r"90^\circ", CORRECT),
    (r"50\%", "50", CORRECT),
    (r"50\%", "0.5", CORRECT),
    ("0.5", r"50\%", CORRECT),
    (r"50\%", "60", WRONG),
    # sets, tuples, intervals, matrices
    (r"\{1,2\}", r"\{2,1\}", CORRECT),
    ("1,2", "2,1", CORRECT),
    ("1,2", "1,3", WRONG),
    (r"\pm 2", "2,-2", CORRECT),
    ("(1,2)", "(2,1)", WRONG),
    ("[0,1]", "(0,1)", WRONG),
    ("[0,1]", r"x\in[0,1]", CORRECT),
    (VECTOR % ("pmatrix", "pmatrix"), VECTOR % ("bmatrix", "bmatrix"), CORRECT),
    # words
    (r"\text{Evelyn}", "Evelyn", CORRECT),
    (r"\text{Evelyn}", r"\text{Bob}", WRONG),
    ("A", r"\textbf{(A)}", CORRECT),
    ("42", r"\text{forty-two}", WRONG),
    ("11:30", "11:31", WRONG),
    # nothing there
    ("42", "", UNPARSABLE),
    ("42", "   ", UNPARSABLE),
]

# What a policy may write that was never taught: none of it may be correct, and all of it ends in time.
HOSTILE = [
    # several answers at once
    "41, 42",
    r"41 \text{ or } 42",
    r"\{41,42\}",
    "$41$ $42$",
    "41;42",
    "x=41,x=42",
    r"42 \ne 41",
    "[41,43]",
    "42 " * 50,
    r"(-\infty,\infty)",
    r"\mathbb{Z}",
    # no number
    r"\frac{0}{0}",
    r"42\cdot\frac{0}{0}",
    r"\infty-\infty",
    "nan",
    r"\text{undefined}",
    "?",
    "\\",
    "42\x00",
    "\u202e24",
    # code and TeX commands
    "__import__('os').system('touch FILE')",
    "__import__('os')._exit(0)",
    "exec('raise SystemExit')",
    "lambda x: 42",
    r"\input{/etc/passwd}",
    r"\write18{touch FILE}",
    r"\def\x{42}\x",
    # work without end
    "9^{9^{9^9}}",
    "9**9**9**9",
    "10^{10^{10}}",
    "1000000!",
    "7!!!!!!!",
    "(" * 140 + "42" + ")" * 140,
    r"\frac{1}{" * 8 + "2" + "}" * 8,
    r"\sqrt{" * 12 + "x" + "}" * 12,
    "1" * 300,
    "0." + "1" * 290,
    "1e999999999",
    "x" * 300,
    "{" * 10 + "41" + "}" * 10,
]

# Whole completions; the right answer is 42.
COMPLETIONS = [
    ("", UNPARSABLE),
    ("The answer is 42.", UNPARSABLE),
    (r"\boxed", UNPARSABLE),
    (r"\boxed 42", UNPARSABLE),
    (r"\boxed{", UNPARSABLE),
    (r"\boxed{42", UNPARSABLE),
    (r"\boxed{\frac{84}{2}", UNPARSABLE),
    (r"\boxed{42\}", UNPARSABLE),
    (r"\boxed{42} \boxed{", UNPARSABLE),
    (r"So \boxed{42}.", CORRECT),
    (r"\boxed{41} wait, \boxed{42}", CORRECT),
    (r"\boxed{42} wait, \boxed{41}", WRONG),
    (r"\boxed{\boxed{42}}", CORRECT),
    (r"\boxed{42}}}}", CORRECT),
    (r"\boxed{\frac{84}{2}} {", CORRECT),
    (r"\boxed{" + "1+" * 149 + "42}", WRONG),
    (r"\boxed{" + "1+" * 150 + "42}", UNPARSABLE),
    (r"\boxed{" + "9" * 1_000_000 + "}", UNPARSABLE),
    (r"\boxed{" * 150_000, UNPARSABLE),
    ("{" * 1_000_000 + r"\boxed{42}", CORRECT),
    (r"\boxed{42}" + " " * 1_000_000, CORRECT),
    ("42 " * 300_000, UNPARSABLE),
]


def problem(answer: str) -> Problem:
    return Problem(0, "the prompt", answer)


def write(path: Path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The verdicts on all of the tables, from one call, and the seconds that it took."""
    file = tmp_path_factory.mktemp("hostile") / "file"
    cases = [(gold, rf"\boxed{{{text}}}") for gold, text, _ in HONEST]
    # Between the honest ones, so that these follow right after killed ones.
    cases += [("42", rf"\boxed{{{text}}}") for text in HOSTILE]
    cases += [("42", text) for text, _ in COMPLETIONS]
    order = sorted(range(len(cases)), key=lambda i: i * 7919 % len(cases))
    task = Maths(deadline_s=DEADLINE_S, workers=2)
    started = time.monotonic()
    completions = [cases[i][1].replace("FILE", str(file)) for i in order]
    verdicts = task.judge([problem(cases[i][0]) for i in order], completions)
    seconds = time.monotonic() - started
    task.close()
    assert not file.exists()
    return dict(zip((cases[i] for i in order), verdicts, strict=True)), seconds


@pytest.mark.parametrize(("gold", "text", "verdict"), HONEST, ids=lambda value: str(value)[:40])
def test_an_honest_answer_gets_its_verdict(judged, gold, text, verdict):
    assert judged[0][gold, rf"\boxed{{{text}}}"] is verdict


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_a_hostile_answer_is_never_correct(judged, text):
    assert judged[0]["42", rf"\boxed{{{text}}}"] in (WRONG, UNPARSABLE, TIMEOUT)


@pytest.mark.parametrize(("text", "verdict"), COMPLETIONS, ids=lambda value: str(value)[:40])
def test_a_completion_is_judged_by_its_last_box(judged, text, verdict):
    assert judged[0]["42", text] is verdict


def test_all_of_it_ends_in_time_and_only_hostile_answers_time_out(judged):
    verdicts, seconds = judged
    late = [case for case, verdict in verdicts.items() if verdict is TIMEOUT]
    assert 0 < len(late) <= 12
    # Two workers; each late one costs its deadline and the start of another process.
    assert seconds < 20 + len(late) * (DEADLINE_S + 5) / 2


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{a}", "a"),
        (r"\boxed{ a }", " a "),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),
        (r"\boxed{a\\}", r"a\\"),
        (r"\boxed{\text{a}} and {b}", r"\text{a}"),
        (r"\boxed{a{b{c}}d}e}", "a{b{c}}d"),
        (r"\boxed{" + "a" * 300 + "}", "a" * 300),
        (r"\boxed{" + "a" * 301 + "}", None),
        (r"\boxed{a\\\}", None),
        ("boxed{a}", None),
    ],
)
def test_the_last_box_ends_at_its_own_brace(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("1/3", "0.333333"), ("x", "y"), ("1/2", "1/0"), ("9" * 101, "1"), (r"50\%", "50"), ("1", "\u0661")],
)
def test_what_is_not_plain_is_left_to_math_verify(gold, answer):
    assert compare_simple(gold, answer) is None


def test_plain_answers_start_no_process():
    task = Maths()
    answers = [r"\boxed{42}", r"\boxed{41}", "none", r"\boxed{1{,}000}"]
    verdicts = task.judge([problem("42")] * 4, answers)
    assert verdicts == [CORRECT, WRONG, UNPARSABLE, WRONG]
    assert task._pool._processes == []


@pytest.mark.parametrize(
    ("completion", "answer", "verdict"),
    [
        ("so\nAnswer: 42", "42", CORRECT),
        ("so\nanswer : 42\n", "42", CORRECT),
        ("Answer:\n42", "42", CORRECT),
        ("The final answer: $42$.", "42", CORRECT),
        ("Answer: 41\nAnswer: 42", "42", CORRECT),
        ("Answer: 42\nAnswer: 41", "42", WRONG),
        ("Answer: x = 42", "42", CORRECT),
        ("Answer: 1,000", "1000", CORRECT),
        ("Answer: 42.0", "42", WRONG),
        ("Answer: 84/2", "42", WRONG),
        (r"Answer: \boxed{42}", "42", CORRECT),
        (r"Answer: $\frac12$", r"\frac{1}{2}", CORRECT),
        (r"Answer: \frac{1}{2}", r"\frac12", CORRECT),
        (r"Answer: 2\sqrt3", r"2\sqrt{3}", CORRECT),
        (r"Answer: 10\text{ cm}", "10", CORRECT),
        (r"Answer: 90^\circ", "90", CORRECT),
        (r"Answer: \$5", "5", CORRECT),
        (r"Answer: 3 dollars", "3", CORRECT),
        ("Answer:", "42", UNPARSABLE),
        ("Answer: $", "points", WRONG),
        ("42", "42", UNPARSABLE),
        (r"so \boxed{42}", "42", CORRECT),
        (r"so \boxed{42}" + " " * 100, "42", UNPARSABLE),
        (r"so \boxed{ 42 }", "42", WRONG),
        (r"Answer: 41, or \boxed{42}", "42", CORRECT),
        ("Answer: 42" + " " * 300, "42", UNPARSABLE),
        ("Answer: 42" + "\n" * 250, "42", CORRECT),
        ("Answer:" * 100_000, "42", WRONG),
        (" " * 1_000_000, "42", UNPARSABLE),
        ("frac" * 250_000 + "\nAnswer: 1", "42", WRONG),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_dapo_rule(completion, answer, verdict):
    started = time.monotonic()
    assert judge_dapo(completion, answer) is verdict
    assert time.monotonic() - started < 0.2


def test_the_task_judges_by_the_dapo_rule():
    task = Maths(prompt="dapo", verifier="dapo")
    completions = ["Answer: 42", "none", r"\boxed{84/2}"]
    assert task.judge([problem("42")] * 3, completions) == [CORRECT, UNPARSABLE, WRONG]
    task.close()
