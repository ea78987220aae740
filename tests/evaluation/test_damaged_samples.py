"""Samples on disk that a crash, a merge or an editor has damaged are named, and not compared."""

import json
import types

import numpy as np
import pytest
from fake_evaluation import FakeTask

from entropy_rl.evaluation import compare_runs, read_samples, summarize
from entropy_rl.evaluation.samples import write_result
from entropy_rl.runs.jsonl import write_jsonl
from entropy_rl.tasks.task import Problem

PROBLEMS, SAMPLES = 4, 3


def rows_of(seed=0):
    draw = np.random.default_rng(seed)
    return [
        {
            "problem": problem,
            "sample": sample,
            "prompt": f"p{problem}",
            "right_answer": "1",
            "completion": "x",
            "answer": "1" if (sample + seed) % 2 else "2",
            "verdict": "correct" if (sample + seed) % 2 else "wrong",
            "finish_reason": "eos",
            "length": 3,
            "tokens": draw.integers(0, 9, 3).tolist(),
            "log_probs": [-1.0, -1, 0],
            "entropy": [1.0, 1, 0.5],
        }
        for problem in range(PROBLEMS)
        for sample in range(SAMPLES)
    ]


def evaluated(directory, rows=None, written=None):
    """An evaluation whose samples.jsonl has `written` instead of the rows of its result."""
    rows = rows_of() if rows is None else rows
    directory.mkdir()
    problems = [Problem(i, f"p{i}", "1") for i in range(PROBLEMS)]
    prompts = types.SimpleNamespace(problems=problems, left_out=0)
    write_result(directory, summarize(rows, FakeTask(), prompts, SAMPLES))
    write_jsonl(directory / "samples.jsonl", rows if written is None else written)
    return directory


def error_of(act):
    with pytest.raises(ValueError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_evaluations_are_compared(tmp_path):
    found = compare_runs(evaluated(tmp_path / "a"), evaluated(tmp_path / "b", rows_of(1)))
    assert found.problems == PROBLEMS and found.only_in_one == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[: PROBLEMS * SAMPLES // 2], "4 problems, got 2"),
        (lambda rows: rows[:-1], "3 samples of each problem, got 2 of 3"),
        (lambda rows: [row for row in rows if row["sample"]], "3 samples of each problem, got 2 "),
        (lambda rows: [*rows, rows[0] | {"sample": 3}], "3 samples of each problem, got 4 of 0"),
        (lambda rows: [*rows, rows[0] | {"problem": 9}], "4 problems, got 5"),
        (
            lambda rows: [*rows, rows[0] | {"verdict": "correct"}],
            "must hold every sample once, got sample 0 of problem 0 twice",
        ),
        (lambda rows: [], "must hold the samples of the evaluation, got only evaluation.json"),
    ],
)
def test_samples_that_are_not_those_of_the_result_are_not_compared(tmp_path, change, message):
    whole = evaluated(tmp_path / "a")
    part = evaluated(tmp_path / "b", written=change(rows_of()))
    for pair in ((whole, part), (part, whole)):
        error = error_of(lambda pair=pair: compare_runs(*pair))
        assert error.startswith(f"{part}: ") and message in error


def test_an_incomplete_last_line_is_a_sample_that_is_missing(tmp_path):
    whole, part = evaluated(tmp_path / "a"), evaluated(tmp_path / "b")
    file = part / "samples.jsonl"
    file.write_text(file.read_text()[:-5])
    assert "3 samples of each problem, got 2 of 3" in error_of(lambda: compare_runs(whole, part))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "tokens: must be a list of token ids from 0 to 2147483647, got None"),
        ({"tokens": "abc"}, "tokens: must be a list of token ids from 0 to 2147483647, got 'abc'"),
        ({"tokens": ["a", 1, 2]}, "tokens: must be a list of token ids "),
        ({"tokens": [1.5, 1, 2]}, "tokens: must be a list of token ids "),
        ({"tokens": [[1], [2], [3]]}, "tokens: must be a list of token ids "),
        ({"tokens": [True, 1, 2]}, "tokens: must be a list of token ids "),
        ({"tokens": [-1, 1, 2]}, "tokens: must be a list of token ids "),
        ({"tokens": [2**40, 1, 2]}, "tokens: must be a list of token ids "),
        ({"tokens": [1, 2]}, "entropy: must have a number for each of the 2 tokens, got 3"),
        ({"log_probs": []}, "log_probs: must have a number for each of the 3 tokens, got 0"),
        ({"entropy": [1.0, None, 1.0]}, "entropy: must be a list of finite numbers, got ["),
        ({"entropy": [1.0, float("inf"), 1]}, "entropy: must be a list of finite numbers, got ["),
        ({"log_probs": [10**400, 1, 1]}, "log_probs: must be a list of finite numbers, got ["),
        ({"log_probs": [0.5, 10**400, 1]}, "log_probs: must be a list of finite numbers, got ["),
        ({"answer": ["1"]}, "answer: must be a string or null, got ['1']"),
        ({"answer": 1}, "answer: must be a string or null, got 1"),
        ({"problem": "0"}, "problem: must be an integer, got '0'"),
        ({"problem": [0]}, "problem: must be an integer, got [0]"),
        ({"sample": "x"}, "sample: must be an integer from 0 to 2147483647, got 'x'"),
        ({"sample": True}, "sample: must be an integer from 0 to 2147483647, got True"),
        ({"prompt": None}, "prompt: must be a string, got None"),
        ({"verdict": "Correct"}, "verdict: must be one of "),
        ({"verdict": []}, "verdict: must be one of "),
        ({"graded": "x"}, "graded: must be a finite number, got 'x'"),
        ({"graded": float("nan")}, "graded: must be a finite number, got nan"),
        ({"parts": [1]}, "parts: must be a mapping from names to finite numbers, got [1]"),
        ({"parts": {"a": None}}, "parts: must be a mapping from names to finite numbers, got {"),
        ({"completion": 5}, "completion: must be a string, got 5"),
    ],
)
def test_a_field_of_a_wrong_type_is_named_with_file_and_line(tmp_path, changes, message):
    rows = rows_of()
    rows[2] |= changes
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = error_of(lambda: list(read_samples(tmp_path)))
    assert error.startswith(f"{tmp_path / 'samples.jsonl'}:3: must be a sample ({message}")


def test_a_line_that_is_no_sample_is_named(tmp_path):
    for line, message in (
        ("[1]", "must be a sample, a JSON object, got [1]"),
        ("{broken}", "must be a sample ("),
        (json.dumps({"problem": 0}), "must be a sample, got none of field 'sample'"),
    ):
        (tmp_path / "samples.jsonl").write_text(line + "\n")
        error = error_of(lambda: list(read_samples(tmp_path)))
        assert error.startswith(f"{tmp_path / 'samples.jsonl'}:1: {message}")


def test_samples_without_what_older_versions_did_not_record_are_read(tmp_path):
    rows = [
        {name: value for name, value in row.items() if name not in ("log_probs", "finish_reason")}
        for row in rows_of()
    ]
    write_jsonl(tmp_path / "samples.jsonl", rows)
    assert list(read_samples(tmp_path)) == rows
