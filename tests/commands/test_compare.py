"""Two evaluations held against each other, from the files that they left to the words in the
terminal.
"""

import csv
import json
import math
import shutil
import types

import numpy as np
import pytest
from fake_evaluation import FakeTask

from entropy_rl.cli.main import main
from entropy_rl.evaluation import compare_runs, find_evaluation, summarize
from entropy_rl.evaluation.samples import write_result
from entropy_rl.report.comparison_tables import comparison_text, verdict
from entropy_rl.runs.jsonl import write_jsonl
from entropy_rl.stats.bootstrap import holm, paired_bootstrap, sign_flip_p_value
from entropy_rl.stats.pass_at_k import pass_at_k
from entropy_rl.tasks.task import Problem

PROBLEMS, SAMPLES = 24, 16


def write_evaluation(
    directory,
    seed,
    gain=0.0,
    longer=0,
    problems=PROBLEMS,
    verdicts=("correct", "wrong"),
    samples=SAMPLES,
):
    """Samples that are correct with 0.1 + gain; these have `longer` tokens more than the 10 of
    others.
    """
    draw = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    rows = []
    for problem in range(problems):
        for sample in range(samples):
            correct = draw.random() < 0.1 + gain
            tokens = draw.integers(0, 50, 10 + longer * correct).tolist()
            rows.append(
                {
                    "problem": problem,
                    "sample": sample,
                    "prompt": f"problem {problem}",
                    "right_answer": "1",
                    "completion": "",
                    "answer": "1" if correct else str(draw.integers(2, 9)),
                    "verdict": verdicts[0] if correct else verdicts[1],
                    "finish_reason": "eos",
                    "length": len(tokens),
                    "tokens": tokens,
                    "log_probs": [0.0] * len(tokens),
                    "entropy": [0.0] * len(tokens),
                }
            )
    write_jsonl(directory / "samples.jsonl", rows)
    prompts = types.SimpleNamespace(
        problems=[Problem(i, f"problem {i}", "1") for i in range(problems)], left_out=0
    )
    write_result(directory, summarize(rows, FakeTask(), prompts, samples))
    return rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`base` and `same` differ in their seeds only; `better` is right more often."""
    directory = tmp_path_factory.mktemp("runs")
    rows = {
        name: write_evaluation(directory / name, seed, gain)
        for name, seed, gain in [("base", 0, 0.0), ("same", 1, 0.0), ("better", 2, 0.3)]
    }
    return directory, rows


def correct_of(rows):
    counts = np.zeros(PROBLEMS, int)
    for row in rows:
        counts[row["problem"]] += row["verdict"] == "correct"
    return counts


def test_rows_are_paired_tests_of_the_samples(runs):
    directory, rows = runs
    found = compare_runs(directory / "base", directory / "better")
    assert [line.name for line in found.pass_at_k] == [
        "Pass@1",
        "Pass@2",
        "Pass@4",
        "Pass@8",
        "Pass@16",
    ]
    p_values = []
    for k, line in zip((1, 2, 4, 8, 16), found.pass_at_k, strict=True):
        one, other = (pass_at_k(SAMPLES, correct_of(rows[name]), k) for name in ("base", "better"))
        test = paired_bootstrap(other, one)
        p_values.append(float(sign_flip_p_value(other, one)))
        assert (line.a, line.b) == pytest.approx((one.mean(), other.mean()), abs=1e-12)
        assert (line.difference, line.low, line.high) == pytest.approx(tuple(test[:3]), abs=1e-12)
        assert line.p_value == pytest.approx(p_values[-1]) and line.problems == PROBLEMS
    assert [line.p_adjusted for line in found.pass_at_k] == pytest.approx(holm(p_values).tolist())


def test_a_better_run_is_significantly_higher_and_swapping_runs_negates(runs):
    directory, _ = runs
    found = compare_runs(directory / "base", directory / "better")
    assert "B is significantly higher at Pass@1, Pass@2, Pass@4" in verdict(
        found.pass_at_k, "Pass@K"
    )
    back = compare_runs(directory / "better", directory / "base")
    assert "A is significantly higher at Pass@1, Pass@2, Pass@4" in verdict(
        back.pass_at_k, "Pass@K"
    )
    for table in ("pass_at_k", "equal_budget", "equal_length", "diversity"):
        for one, other in zip(getattr(found, table), getattr(back, table), strict=True):
            assert (one.a, one.b) == pytest.approx((other.b, other.a))
            assert one.difference == pytest.approx(-other.difference, abs=1e-12)


def test_runs_that_differ_by_chance_have_no_significant_difference(runs):
    directory, _ = runs
    text = comparison_text(compare_runs(directory / "base", directory / "same"))
    assert text.count("=> no significant difference") == 4 and "significantly higher" not in text


def test_a_run_compared_with_itself_has_zero_difference_with_the_interval_of_its_problems(runs):
    directory, _ = runs
    found = compare_runs(directory / "base", directory / "base")
    for table in ("pass_at_k", "equal_budget", "equal_length", "diversity"):
        for line in getattr(found, table):
            reach = 1 - 0.05 ** (1 / line.problems)
            values = (line.difference, line.low, line.high, line.p_value)
            assert values == pytest.approx((0, -reach, reach, 1))


def test_grades_that_are_equal_have_an_unknown_interval(tmp_path):
    for name in ("a", "b"):
        rows = write_evaluation(tmp_path / name, 0, problems=3)
        rows = [row | {"parts": {"steps": 3.0}} for row in rows]
        (tmp_path / name / "samples.jsonl").unlink()
        write_jsonl(tmp_path / name / "samples.jsonl", rows)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    (line,) = (line for line in found.grades if line.name == "steps")
    assert (line.low, line.high, line.p_value) == (-math.inf, math.inf, 1)
    assert "  [unknown]  1 " in comparison_text(found)


def test_a_gain_that_is_paid_for_in_tokens_is_smaller_at_equal_budget(tmp_path):
    write_evaluation(tmp_path / "base", 0, gain=0.2)
    write_evaluation(tmp_path / "longer", 1, gain=0.2, longer=30)
    found = compare_runs(tmp_path / "base", tmp_path / "longer")
    equal_samples = max(abs(line.difference) for line in found.pass_at_k)
    small, *_ = found.equal_budget
    assert small.difference < -0.05 < -equal_samples / 2 and small.is_significant
    # Every correct sample is longer than any of the other run: no stratum has both.
    assert found.equal_length and all(line.b == 0 for line in found.equal_length)


def test_samples_without_a_judgement_are_left_out(tmp_path):
    write_evaluation(tmp_path / "a", 0, gain=0.4)
    rows = write_evaluation(tmp_path / "b", 0, gain=0.4, verdicts=("correct", "timeout"))
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    judged = (correct_of(rows) > 0).sum()
    assert found.pass_at_k[0].problems == judged and found.pass_at_k[0].b == 1
    assert found.pass_at_k[3].problems == (correct_of(rows) >= 8).sum() < judged
    assert found.problems == judged and found.not_judged == PROBLEMS - judged
    assert found.unjudged_samples == (0, PROBLEMS * SAMPLES - correct_of(rows).sum())
    assert (
        f"samples without a verdict, 0 of A and {found.unjudged_samples[1]} of B"
        in comparison_text(found)
    )


def test_measures_without_common_samples_are_reported_as_not_tested(tmp_path):
    # Of the one run no sample is as short as any of the other; one has nothing but correct samples.
    write_evaluation(tmp_path / "a", 0, gain=0.9)
    write_evaluation(tmp_path / "b", 1, gain=0.9, longer=20)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert found.equal_length == []
    assert "=> Pass@K at equal length was not tested: no problem has" in comparison_text(found)


def test_one_sample_of_each_problem_can_be_compared(tmp_path):
    for name in "ab":
        seed = 0 if name == "a" else 1
        write_evaluation(tmp_path / name, seed, gain=0.4, longer=5, samples=1)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert [line.name for line in found.pass_at_k] == ["Pass@1"] and comparison_text(found)


def test_a_problem_with_few_tokens_limits_no_budget_but_its_own(runs, tmp_path):
    directory, rows = runs
    shutil.copytree(directory / "base", tmp_path / "one_short")
    few = [row | {"verdict": "timeout"} if (row["problem"], row["sample"] > 0) == (3, True) else row
           for row in rows["base"]]  # fmt: skip
    (tmp_path / "one_short" / "samples.jsonl").unlink()
    write_jsonl(tmp_path / "one_short" / "samples.jsonl", few)
    found = compare_runs(tmp_path / "one_short", directory / "better")
    assert [line.problems for line in found.equal_budget][-1] == PROBLEMS - 1


def test_budgets_are_multiples_of_the_mean_length_of_both(tmp_path):
    a = write_evaluation(tmp_path / "a", 0, gain=0.3)
    b = write_evaluation(tmp_path / "b", 1, gain=0.3, longer=10)
    mean = np.mean([[row["length"] for row in rows] for rows in (a, b)])
    found = [line.name for line in compare_runs(tmp_path / "a", tmp_path / "b").equal_budget]
    assert found[:3] == [f"Pass@{round(k * mean)} tokens" for k in (1, 2, 4)]


def test_a_budget_is_compared_only_where_most_problems_have_as_many_tokens(runs, tmp_path):
    directory, rows = runs
    shutil.copytree(directory / "base", tmp_path / "short")
    # 16 samples of 10 tokens; 14 of 24 problems have 8 that were judged.
    few = [row | {"verdict": "timeout"} if row["problem"] < 14 and row["sample"] >= 8 else row
           for row in rows["base"]]  # fmt: skip
    (tmp_path / "short" / "samples.jsonl").unlink()
    write_jsonl(tmp_path / "short" / "samples.jsonl", few)
    found = compare_runs(tmp_path / "short", directory / "better")
    assert [line.name for line in found.equal_budget] == [
        f"Pass@{budget} tokens" for budget in (10, 20, 40, 80)
    ]
    assert {line.problems for line in found.equal_budget} == {PROBLEMS}


def test_the_order_in_which_samples_were_written_changes_nothing(runs, tmp_path):
    directory, rows = runs
    shutil.copytree(directory / "base", tmp_path / "turned")
    (tmp_path / "turned" / "samples.jsonl").unlink()
    write_jsonl(tmp_path / "turned" / "samples.jsonl", rows["base"][::-1])
    found, expected = (
        compare_runs(path, directory / "better").to_plain()
        for path in (tmp_path / "turned", directory / "base")
    )
    assert found == expected


def test_settings_that_differ_are_named(runs, tmp_path):
    directory, _ = runs
    for name, temperature in (("hot", 2.0), ("cold", 0.6)):
        shutil.copytree(directory / "base", tmp_path / name)
        settings = f"{{temperature: {temperature}, rows_per_call: {temperature}}}"
        (tmp_path / name / "config.yaml").write_text(
            f"task: {{name: math}}\nevaluation: {settings}\n"
        )
    found = compare_runs(tmp_path / "hot", tmp_path / "cold")
    assert found.settings == ["evaluation.temperature: 2.0 in A, 0.6 in B"]
    assert "settings differ: evaluation.temperature: 2.0 in A, 0.6 in B\n" in comparison_text(found)


def test_the_command_writes_numbers_and_curves_and_prints_verdicts(runs, tmp_path, capsys):
    directory, _ = runs
    output = tmp_path / "out"
    names = [str(directory / name) for name in ("base", "better")]
    assert main(["compare", *names, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"A: {names[0]}\nB: {names[1]}\n\n24 problems\n\nPass@K\n")
    assert "B is significantly higher at Pass@1" in out and str(output) in out
    assert max(map(len, out.splitlines()[3:-1])) <= 110
    written = {path.name for path in output.iterdir()}
    assert {"comparison.json", "comparison.csv", "pass_at_k.csv"} <= written
    plain = json.loads((output / "comparison.json").read_text())
    assert (plain["run_a"], plain["run_b"]) == tuple(names)
    table = list(csv.DictReader((output / "comparison.csv").open()))
    assert [row["name"] for row in table if row["table"] == "pass_at_k"] == [
        line["name"] for line in plain["pass_at_k"]
    ]
    assert float(table[0]["p_adjusted"]) == plain["pass_at_k"][0]["p_adjusted"]
    assert [table[0]["run_a"], table[0]["run_b"]] == names
    captions = [
        line
        for line in (output / "comparison.tex").read_text().splitlines()
        if line.startswith(r"\caption")
    ]
    assert len(captions) == 4
    for caption in captions:
        assert ". A: base; B: better. " in caption and "sign-flip test" in caption
        assert "Holm's correction" in caption and "paired bootstrap over problems" in caption
    if "pass_at_k.png" in written:
        assert (output / "pass_at_k.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (output / "pass_at_k.svg").read_text()


def test_curves_are_over_the_problems_that_have_enough_samples_in_both(runs, tmp_path):
    directory, _ = runs
    shutil.copytree(directory / "better", tmp_path / "late")
    file = tmp_path / "late" / "samples.jsonl"
    first, *rows = map(json.loads, file.read_text().splitlines())
    rows = [first | {"verdict": "timeout"}, *rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = compare_runs(directory / "base", tmp_path / "late").curves
    counts = [{k: point[-1] for k, point in curve.items()} for curve in (one, other)]
    assert counts[0] == counts[1] and counts[0][max(one)] == counts[0][1] - 1


def test_the_last_evaluation_of_a_training_run_is_compared(runs, tmp_path):
    directory, _ = runs
    for step in (0, 20, 100):
        shutil.copytree(directory / "base", tmp_path / "run" / "evaluations" / str(step))
    (tmp_path / "run" / "evaluations" / "100" / "evaluation.json").unlink()  # it was interrupted
    assert find_evaluation(tmp_path / "run").name == "20"
    assert find_evaluation(tmp_path / "run" / "evaluations" / "0").name == "0"


def test_runs_that_cannot_be_compared_are_refused_in_one_line(runs, tmp_path, capsys, monkeypatch):
    directory, _ = runs
    base = str(directory / "base")
    monkeypatch.chdir(tmp_path)

    def refused(*arguments):
        assert main(["compare", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("entropy-rl compare: ")

    assert refused() == "the command line: missing: run_a, run_b"
    assert refused(base) == "the command line: missing: run_b"
    # A run without a later evaluation is found as its first one.
    shutil.copytree(base, tmp_path / "run" / "evaluations" / "0")
    assert refused("run/evaluations/0", "run") == (
        "run_b: must be another evaluation than that of run/evaluations/0, got 'run/evaluations/0'"
    )
    assert refused(base, "nowhere").startswith(
        "nowhere: must be the directory of an evaluation or of a run with evaluations, got no dir"
    )
    assert refused(base, ".").startswith(
        ".: must be the directory of an evaluation or of a run with evaluations, got no complete"
    )
    shutil.copytree(base, "moved", ignore=shutil.ignore_patterns("samples*"))
    line = "moved: must hold the samples of the evaluation, got only evaluation.json"
    assert refused(base, "moved") == line
    assert refused(base, base, base).startswith(
        "command line: must be RUN_A, RUN_B, --config FILE or --dotted.path VALUE, got "
    )
    other = tmp_path / "other"
    write_evaluation(other, 3)
    text = (other / "samples.jsonl").read_text()
    (other / "samples.jsonl").write_text(text.replace('"problem 7"', '"problem seven"'))
    assert refused(base, "other").endswith(
        "must be evaluations of the same problems, got different prompts or answers for problem 7"
    )
    (other / "samples.jsonl").write_text(text.replace('"right_answer": "1"', '"right_answer": "2"'))
    assert "must be evaluations of the same problems" in refused(base, "other")
    for broken in ('"verdict": "yes"', '"verdikt": "wrong"'):
        (other / "samples.jsonl").write_text(text.replace('"verdict": "wrong"', broken))
        assert refused(base, "other").startswith("other/samples.jsonl:2: must be a sample")
    assert refused(base, base, "--output", base).startswith(
        "output: must not be the directory of a run"
    )
