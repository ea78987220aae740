"""Right answers that no completion can meet: counted, shown and refused before a run."""

import json
import logging

import pytest
from math_files import write_jsonl

from entropy_rl.cli.main import main
from entropy_rl.tasks.math import Math
from entropy_rl.tasks.math.right_answers import check_answers, why_unusable
from entropy_rl.tasks.task import Verdict

GSM8K_RAW = [
    {"question": "1 + 1?", "answer": "We add. <<1+1=2>>2\n#### 2"},
    {"question": "1250?", "answer": "It is.\n#### 1,250"},
]
PROSE = "The function is increasing on the whole interval and therefore has no maximum"


@pytest.mark.parametrize(
    "answer",
    [
        "42",
        "-0.5",
        r"\frac{1}{2}",
        "New York",
        r"\text{Evelyn}",
        r"\text{even}",
        "(C)",
        r"\textbf{(C)}\ 12",
        r"10\text{ cm}^2",
        "8 slices of pizza",
        r"x < 1 \text{ or } x > 2",
        r"\{x \mid x > 2\}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"p \equiv 1 \pmod{4}",
        "y = 2x + 1",
        r"\emptyset",
        r"\{\}",
        "?",
        "12平方厘米",
        r"2^{n} \text{ if } n \text{ is even}",
        "The answer is: 150.",
        r"\begin{equation}5\end{equation}",
        "undefined",
        "[1,2]",
        "-1",
    ],
)
def test_an_answer_that_can_be_read_is_usable(answer):
    assert why_unusable(answer) == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (PROSE, "prose"),
        ("We see that x = 3 since adding gives 3", "prose"),
        ("see the picture below 3", "prose with a formula"),
        ("函数在整个区间上单调递增因此没有最大值", "prose"),
        (r"\frac{1}{2", "braces that are not balanced"),
        ("1}", "braces that are not balanced"),
        (r"\text{}", "nothing but typography"),
        ("$$", "nothing but typography"),
        ("1+" * 200 + "1", "longer than 300 characters"),
        ("1\n2\n3", "several lines"),
        ("9^{9^{9^{9}}}", "too large to be parsed"),
        (r"\begin{tabular}{c} 1 \end{tabular}", "a picture, a table or markup"),
        (r"\includegraphics{a.png}", "a picture, a table or markup"),
        ("nan", "a placeholder"),
        ("None", "a placeholder"),
        ("N/A", "a placeholder"),
        ("unknown", "a placeholder"),
        ("See the solution.", "a placeholder"),
        ("#### ", "nothing but typography"),
        ('["5", "6"]', "a list or an object of several texts"),
        ("['5','6']", "a list or an object of several texts"),
        ('{"answer": 5, "unit": "m"}', "a list or an object of several texts"),
        ("https://example.org/solution", "a picture, a table or markup"),
        ("<answer>3</answer>", "a picture, a table or markup"),
    ],
)
def test_an_answer_that_only_its_own_text_meets_is_unusable(answer, reason):
    assert why_unusable(answer) == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("42", ""), (r"\frac12", ""), ("points", "nothing is left of it"), ("1" * 400, "too long")],
)
def test_the_dapo_rule_has_its_own_limits(answer, reason):
    assert why_unusable(answer, "dapo").startswith(reason)
    assert bool(why_unusable(answer, "dapo")) == bool(reason)


def test_the_report_counts_and_gives_an_example():
    report = check_answers(["1", PROSE, "#### 3", r"so \boxed{4}", "1}"])
    assert (report.total, report.extracted, report.unusable) == (5, 2, 2)
    assert (report.index, report.example, report.reason) == (1, PROSE, "prose")
    assert "got 2 of 5" in report.message and "answer_field" in report.message
    assert check_answers(["1", "2"]).message == ""


def test_the_progress_of_many_answers_is_shown(monkeypatch, capsys):
    monkeypatch.setattr("entropy_rl.tasks.math.right_answers._LONG", 3)
    assert check_answers(["1", "2"]).total == 2
    assert capsys.readouterr().err == ""
    assert check_answers(["1", PROSE, "3"]).unusable == 1
    assert capsys.readouterr().err.startswith("checking right answers 3/3")


def test_raw_rows_of_gsm8k_are_read_by_their_mark(tmp_path):
    file = write_jsonl(tmp_path / "raw.jsonl", GSM8K_RAW)
    task = Math(train=str(file), problem_field="question")
    problems = task.problems("train")
    assert [problem.answer for problem in problems] == ["2", "1,250"]
    completions = [r"\boxed{2}", r"\boxed{1250}"]
    assert task.judge(problems, completions) == [Verdict.CORRECT] * 2


def test_a_verifier_of_ones_own_gets_the_answer_as_it_is(tmp_path):
    file = write_jsonl(tmp_path / "raw.jsonl", GSM8K_RAW)
    task = Math(train=str(file), problem_field="question", verifier="math:isqrt")
    assert task.problems("train")[0].answer == GSM8K_RAW[0]["answer"]
    task.close()


def test_a_set_without_a_usable_answer_is_refused(tmp_path):
    rows = [{"problem": "P?", "answer": PROSE}, {"problem": "Q?", "answer": "1}"}]
    file = write_jsonl(tmp_path / "f.jsonl", rows)
    with pytest.raises(ValueError, match=rf"^{file}: must have right answers .* got 2 of 2 ") as e:
        Math(train=str(file)).problems("train")
    assert "\n" not in str(e.value)


def test_some_unusable_answers_are_a_warning_at_loading(tmp_path, caplog):
    rows = [{"problem": "P?", "answer": PROSE}, {"problem": "Q?", "answer": "1"}]
    file = write_jsonl(tmp_path / "f.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        assert len(Math(train=str(file)).problems("train")) == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{file}: must have right answers") and "got 1 of 2" in line


@pytest.mark.parametrize("verb", ["show", "prepare"])
def test_the_verbs_count_what_is_extracted_and_what_is_unusable(tmp_path, capsys, verb):
    rows = [*GSM8K_RAW, {"question": "Why?", "answer": PROSE}]
    file = write_jsonl(tmp_path / "f.jsonl", rows)
    given = [str(file)] if verb == "show" else ["mine", "--source", str(file)]
    given += ["--problem_field", "question", "--data_dir", str(tmp_path)]
    assert main(["data", verb, *given]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 are extracted from solutions" in out
    assert "got 1 of 3" in out and "(prose)" in out and "answer_field" in out
    if verb == "show":
        assert "right answer '2', extracted from" in out


def test_texts_of_data_reach_the_terminal_escaped(tmp_path, capsys):
    evil = "\x1b[2Jclear \x07\u202etxet"
    rows = [{"problem": evil, "answer": f"1 {evil}"}, {"problem": evil, "answer": "2"}]
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arguments in (
        ["show", str(file)],
        ["overlap", str(file), str(file)],
        ["show", str(file), "--answer_field", evil],
        ["show", evil],
    ):
        main(["data", *arguments, "--data_dir", str(tmp_path)])
        out, err = capsys.readouterr()
        assert out + err
        assert not {"\x1b", "\x07", "\u202e"} & set(out + err)
