"""Verdicts of the math verifiers on honest, unusual and hostile answers."""

import itertools
import random
import signal
import time

import pytest
from answer_pairs import DIFFERENT, SAME
from verdict_cases import COMPLETIONS, DAPO, DISPUTED, ENDLESS, HONEST, HOSTILE

from entropy_rl.tasks.math import Math
from entropy_rl.tasks.math.answers import (
    canonical,
    check_equal,
    compare_simple,
    final_answer,
    last_boxed,
)
from entropy_rl.tasks.math.dapo import judge_dapo, last_answer
from entropy_rl.tasks.task import Problem, Verdict

CORRECT, WRONG, UNPARSABLE = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE
DEADLINE_S = 10.0  # the slowest case needs 0.4 s

ANSWERS = HONEST + [("42", text, verdict) for text, verdict in HOSTILE] + DISPUTED


def problem(answer: str) -> Problem:
    return Problem(0, "the prompt", answer)


def box(text: str) -> str:
    return rf"\boxed{{{text}}}"


def brief(value) -> str | None:
    return value.value if isinstance(value, Verdict) else ascii(value)[1:-1][:40]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The verdicts on all of the tables, from one call, and the seconds that it took."""
    file = tmp_path_factory.mktemp("hostile") / "file"
    cases = [(gold, box(text)) for gold, text, _ in ANSWERS]
    cases += [("42", text) for text, _ in COMPLETIONS]
    cases += [(gold, box(text)) for gold, text in [*ENDLESS, *SAME, *DIFFERENT]]
    cases = list(dict.fromkeys(cases))
    assert len(set(cases)) == len(cases)
    random.Random(0).shuffle(cases)
    task = Math(deadline_s=DEADLINE_S, workers=2)
    signal.setitimer(signal.ITIMER_REAL, 10_000)
    started = time.monotonic()
    try:
        verdicts = task.judge(
            [problem(gold) for gold, _ in cases],
            [completion.replace("FILE", str(file)) for _, completion in cases],
        )
        seconds = time.monotonic() - started
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 1000, "the caller's alarm was canceled"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        task.close()
    assert not file.exists(), "a text of the model was run"
    return dict(zip(cases, verdicts, strict=True)), seconds


def test_there_are_many_cases():
    assert len(ANSWERS) + len(COMPLETIONS) + len(ENDLESS) + len(DAPO) >= 600


@pytest.mark.parametrize(("gold", "text", "verdict"), HONEST, ids=brief)
def test_an_honest_answer_gets_its_verdict(judged, gold, text, verdict):
    assert judged[0][gold, box(text)] is verdict


@pytest.mark.parametrize(("text", "verdict"), HOSTILE, ids=brief)
def test_a_hostile_answer_gets_its_verdict(judged, text, verdict):
    assert judged[0]["42", box(text)] is verdict


@pytest.mark.parametrize(("gold", "text", "verdict"), DISPUTED, ids=brief)
def test_a_disputed_answer_keeps_its_verdict(judged, gold, text, verdict):
    assert judged[0][gold, box(text)] is verdict


@pytest.mark.parametrize(("text", "verdict"), COMPLETIONS, ids=brief)
def test_a_completion_is_judged_by_its_last_box(judged, text, verdict):
    assert judged[0]["42", text] is verdict


@pytest.mark.parametrize(("gold", "text"), SAME, ids=brief)
def test_another_spelling_of_the_right_answer_is_correct(judged, gold, text):
    assert judged[0][gold, box(text)] is CORRECT


@pytest.mark.parametrize(("gold", "text"), DIFFERENT, ids=brief)
def test_an_answer_that_differs_in_what_the_parser_drops_is_not_correct(judged, gold, text):
    assert judged[0][gold, box(text)] in (WRONG, UNPARSABLE)


@pytest.mark.parametrize(("gold", "text"), ENDLESS, ids=brief)
def test_an_endless_comparison_is_decided_by_its_size(judged, gold, text):
    assert judged[0][gold, box(text)] in (WRONG, UNPARSABLE)


def test_no_check_times_out_or_crashes(judged):
    verdicts, seconds = judged
    assert {case for case, verdict in verdicts.items() if not verdict.is_judgement} == set()
    assert seconds < 120


def test_a_verdict_takes_less_than_half_a_second():
    check_equal(r"2\sqrt{2}", r"\sqrt{8}")  # imports and caches
    seconds = []
    for gold, text in [*SAME, *DIFFERENT, *((gold, text) for gold, text, _ in HONEST)]:
        started = time.process_time()
        check_equal(final_answer(gold), text)
        seconds.append(time.process_time() - started)
    assert sorted(seconds)[int(len(seconds) * 0.99)] < 0.5


def test_a_long_right_answer_is_met_by_its_own_text():
    triples = ", ".join(f"({n},{n * n + 1},{n**3 - n})" for n in range(2, 40))
    assert len(triples) > 400
    task = Math()
    spaced = triples.replace(", (", ",  (")
    other = triples.replace("(2,5,6)", "(2,5,7)")
    completions = [box(triples), box(spaced), box(other)]
    assert task.judge([problem(triples)] * 3, completions) == [CORRECT, CORRECT, UNPARSABLE]
    assert task._pool._processes == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("We add. <<1+1=2>>\n#### 2", "2"),
        ("#### 1,250", "1,250"),
        ("a #### 1\n#### -3", "-3"),
        (r"So $x = \boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        ("42", "42"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("#### ", "#### "),
        ("#### 5 ####", "5"),
        (r"\boxed{5} or \boxed{6}", "5, 6"),
        (r"$x=\boxed{3}$ and $y=\boxed{4}$", "x=3, y=4"),
        (r"\boxed{1}, $\boxed{2}$, and \boxed{3}.", "1, 2, 3"),
        (r"\(x_1=\boxed{3}\),\quad\(x_2=\boxed{4}\)", "x_1=3, x_2=4"),
        (r"\boxed{1} and so \boxed{2}", "2"),
        ('["5"]', "5"),
        ("['5']", "5"),
        ('{"answer": 5}', "5"),
        (r'{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),
        ("[5]", "[5]"),
        ("approximately 5", "5"),
        (r"So it is \fbox{5}.", "5"),
        ("about the same", "about the same"),
    ],
)
def test_the_final_answer_of_a_solution_is_extracted(gold, answer):
    assert final_answer(gold) == answer


def test_boxes_that_only_connectives_separate_are_one_answer():
    task = Math()
    cases = [
        ("5, 6", r"\boxed{6} or \boxed{5}", CORRECT),
        ("(3,4)", r"$x=\boxed{3}$ and $y=\boxed{4}$", CORRECT),
        (r"\boxed{5} or \boxed{6}", r"\boxed{5,6}", CORRECT),
        (r"\boxed{5} or \boxed{6}", r"\boxed{6}", WRONG),
    ]
    golds, completions, verdicts = zip(*cases, strict=True)
    assert task.judge(list(map(problem, golds)), completions) == list(verdicts)
    task.close()


def test_plain_and_refused_answers_start_no_process():
    task = Math()
    cases = [("42", box(text), verdict) for text, verdict in HOSTILE if verdict is UNPARSABLE]
    cases += [
        ("42", r"\boxed{42}", CORRECT),
        ("42", r"\boxed{41}", WRONG),
        ("42", "none", UNPARSABLE),
    ]
    cases += [("1000", r"\boxed{1{,}000}", CORRECT), ("0.5", r"\boxed{\frac12}", CORRECT)]
    golds, completions, verdicts = zip(*cases, strict=True)
    assert task.judge(list(map(problem, golds)), completions) == list(verdicts)
    assert task._pool._processes == []


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
        (r"\boxed{" + "a" * 301 + "}", "a" * 301),
        (r"\boxed{a\\\}", None),
        ("boxed{a}", None),
    ],
)
def test_the_last_box_ends_at_its_own_brace(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/3", "0.333333"),
        ("x", "y"),
        ("1/2", "1/0"),
        ("9" * 101, "1"),
        (r"50\%", "50"),
        ("1", "\u0661"),
    ],
)
def test_what_is_not_plain_is_left_to_math_verify(gold, answer):
    assert compare_simple(gold, answer) is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("42", "42"),
        (" 0042.0 ", "42"),
        ("1{,}000", "1000"),
        (r"\$18.90", "189/10"),
        ("-.5", "-1/2"),
        (r"\frac{-2}{4}", "-1/2"),
        (r"1\frac{1}{2}", "3/2"),
        (r"0.\overline{3}", "1/3"),
        (r"3\times 10^{-2}", "3/100"),
        ("-0", "0"),
        (r"\text{New York}", "NewYork"),
        (r"\textbf{(C)}", "C"),
        (r"\left( x, \dfrac{1}{2} \right)", r"(x,\frac{1}{2})"),
        ("2 \\pi r", r"2\pir"),
        ("", ""),
    ],
)
def test_the_canonical_text(answer, text):
    assert canonical(answer) == text


def test_answers_have_the_same_canonical_text_where_they_are_called_the_same():
    texts = [text for gold, answer, _ in ANSWERS for text in (gold, answer)]
    texts += [text for gold, text in ENDLESS]
    pairs = [(gold, text) for gold, text, _ in ANSWERS]
    generator = random.Random(0)
    pairs += [tuple(generator.choices(texts, k=2)) for _ in range(5000)]
    for a, b in itertools.chain(pairs, ((b, a) for a, b in pairs), zip(texts, texts, strict=True)):
        assert (compare_simple(a, b) is CORRECT) == (canonical(a) == canonical(b)), (a, b)


def test_check_equal_agrees_with_what_compare_simple_has_decided():
    for gold, answer, verdict in [
        ("42", "42.0", CORRECT),
        ("42", "41", WRONG),
        ("42", "9^{9^9}", UNPARSABLE),
    ]:
        assert compare_simple(gold, answer) is check_equal(gold, answer) is verdict


@pytest.mark.parametrize(("completion", "answer", "verdict", "text"), DAPO, ids=brief)
def test_the_dapo_rule(completion, answer, verdict, text):
    started = time.monotonic()
    assert judge_dapo(completion, answer) is verdict
    assert last_answer(completion) == text
    assert time.monotonic() - started < 0.5


def test_the_task_judges_by_the_dapo_rule():
    task = Math(prompt="dapo", verifier="dapo")
    completions = ["Answer: 42", "none", r"\boxed{84/2}"]
    assert task.judge([problem("42")] * 3, completions) == [CORRECT, UNPARSABLE, WRONG]
    task.close()
