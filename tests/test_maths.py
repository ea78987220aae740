"""The maths task: its files, its prompts, and what its verifiers say to honest and hostile answers."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from entropy_rl.tasks.maths import Maths, compare_simple, judge_dapo, last_boxed
from entropy_rl.tasks.task import Problem, Task, Verdict

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
