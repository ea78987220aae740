"""Pass@K: the same however rows are grouped, and equal to a count of the rows."""

import collections
import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from fake_evaluation import EOS, MAX_PROMPT, MODEL, NEW, PROBLEMS, TOO_LONG, VOCAB, FakeTask

from entropy_rl.config.rollout import EvaluationConfig
from entropy_rl.evaluation import (
    Evaluation,
    evaluation_prompts,
    summarize,
)
from entropy_rl.evaluation.sampling import draw_samples
from entropy_rl.experience.records import completion_rows
from entropy_rl.experience.scoring import Scores
from entropy_rl.report import evaluation_table
from entropy_rl.tasks.countdown import Countdown
from entropy_rl.tasks.countdown.tokenizer import VOCABULARY
from entropy_rl.tasks.task import Judgement, Problem, Verdict
from entropy_rl.types import Rollout


def run(task=None, *, params=MODEL.params, seed=11, **changes):
    """The evaluation, and all rows as they came."""
    settings = {
        "split": "dev",
        "samples": 6,
        "max_new_tokens": NEW,
        "temperature": 0.8,
        "top_p": 0.9,
    }
    task, config = task or FakeTask(), EvaluationConfig(**(settings | changes))
    prompts = evaluation_prompts(config, task, MODEL.tokenizer, MAX_PROMPT)
    rows = [
        row
        for drawn in draw_samples(MODEL, params, task, prompts, config, seed=seed)
        for row in drawn.rows
    ]
    return summarize(rows, task, prompts, config.samples), rows


@pytest.fixture(scope="module")
def whole():
    return run(rows_per_call=1000)


def same(value):
    """Compared exactly, but for the last bits of floats: sums over rows depend on how many there
    are.
    """
    if isinstance(value, float):
        return pytest.approx(value, abs=5e-6)
    if isinstance(value, dict):
        return {key: same(inner) for key, inner in value.items()}
    return [same(inner) for inner in value] if isinstance(value, list | tuple) else value


# --- the rows
# ----------------------------------------------------------------------------------------------


# 30 rows in all, of 5 problems: one at a time; a part of a problem that does not divide its 6
# samples; two problems and a row to spare, so that the last call is moved back.
@pytest.mark.parametrize("rows_per_call", [1, 4, 13])
def test_nothing_depends_on_the_rows_per_call(whole, rows_per_call):
    result, rows = run(rows_per_call=rows_per_call)
    assert [{**row, "log_probs": None, "entropy": None} for row in rows] == [
        {**row, "log_probs": None, "entropy": None} for row in whole[1]
    ]
    assert rows == same(whole[1])
    assert result.pass_at_k == whole[0].pass_at_k
    assert json.loads(json.dumps(result.to_plain())) == same(
        json.loads(json.dumps(whole[0].to_plain()))
    )


def test_every_sample_of_every_problem_comes_exactly_once_and_in_order(whole):
    _, rows = whole
    kept = [problem.id for problem in PROBLEMS if problem is not TOO_LONG]
    assert [(row["problem"], row["sample"]) for row in rows] == list(
        itertools.product(kept, range(6))
    )


def test_samples_differ_and_depend_on_the_seed(whole):
    _, rows = whole
    assert len({tuple(row["tokens"]) for row in rows}) > 20
    _, other = run(seed=12)
    assert sum(a["tokens"] == b["tokens"] for a, b in zip(rows, other, strict=True)) < 10


def test_fewer_samples_or_problems_are_a_part_of_the_samples_of_all(whole):
    _, rows = whole
    assert run(samples=4, rows_per_call=4)[1] == same([row for row in rows if row["sample"] < 4])
    result, fewer = run(problems=4, rows_per_call=13)  # one of them is too long
    assert fewer == same([row for row in rows if row["problem"] in (40, 3, 7)])
    assert (result.problems, result.left_out, result.samples) == (3, 1, 6)


def test_texts_verdicts_and_ends_are_those_of_the_tokens(whole):
    _, rows = whole
    prompts = {problem.id: problem.prompt for problem in PROBLEMS}
    for row in rows:
        tokens = row["tokens"]
        assert row["prompt"] == prompts[row["problem"]]
        assert row["completion"] == " ".join(VOCABULARY[t] for t in tokens if t > 2)
        assert row["verdict"] == FakeTask()._verdict(row["completion"]).value
        assert 1 <= len(tokens) <= NEW == 6 and EOS not in tokens[:-1]
        assert row["finish_reason"] == ("eos" if tokens[-1] == EOS else "length")
        assert row["finish_reason"] == "eos" or len(tokens) == NEW
        assert len(row["log_probs"]) == len(row["entropy"]) == len(tokens)
    assert {row["finish_reason"] for row in rows} == {"eos", "length"}
    assert {row["verdict"] for row in rows} == {"correct", "wrong", "unparsable"}


def test_tokens_are_of_the_nucleus_but_log_probs_and_entropies_of_the_whole_tempered_table(whole):
    log_p = np.asarray(MODEL.params["table"], np.float64) / 0.8
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    for row in whole[1]:
        before = [VOCABULARY.index(row["prompt"].split(" ")[-1]), *row["tokens"][:-1]]
        np.testing.assert_allclose(row["log_probs"], log_p[before, row["tokens"]], atol=5e-6)
        np.testing.assert_allclose(row["entropy"], entropy[before], atol=5e-6)
        # In the nucleus: the tokens that are more likely have less than 0.9 together.
        for state, token in zip(before, row["tokens"], strict=True):
            assert np.exp(log_p[state][log_p[state] > log_p[state, token]]).sum() < 0.9


# --- the result
# --------------------------------------------------------------------------------------------


def by_problem(rows, name):
    values = collections.defaultdict(list)
    for row in rows:
        values[row["problem"]].append(row[name])
    return list(values.values())


def brute_force_pass_at_k(rows, k):
    """The share of k-subsets of the judged samples with a correct one, averaged over problems."""
    shares = []
    for verdicts in by_problem(rows, "verdict"):
        judged = [verdict for verdict in verdicts if verdict not in ("timeout", "crash")]
        shares.append(
            np.mean(["correct" in subset for subset in itertools.combinations(judged, k)])
        )
    return np.mean(shares)


def test_pass_at_k_is_what_a_count_over_all_subsets_of_the_rows_gives(whole):
    result, rows = whole
    assert list(result.pass_at_k) == [1, 2, 4]
    for k, (estimate, low, high) in result.pass_at_k.items():
        assert estimate == pytest.approx(brute_force_pass_at_k(rows, k), abs=1e-12)
        assert 0 <= low < estimate < high <= 1
    assert 0.1 < result.pass_at_k[1][0] < result.pass_at_k[2][0] < result.pass_at_k[4][0] < 1


def test_all_other_figures_are_those_of_the_rows(whole):
    result, rows = whole
    assert (result.problems, result.left_out, result.samples) == (5, 1, 6)
    lengths = [[len(tokens) for tokens in group] for group in by_problem(rows, "tokens")]
    assert result.mean_length[0] == pytest.approx(np.mean(lengths), abs=1e-12)
    sums = [[sum(values) for values in group] for group in by_problem(rows, "entropy")]
    means = np.sum(sums, -1) / np.sum(lengths, -1)  # per token of a problem, then over problems
    assert result.mean_entropy[0] == pytest.approx(means.mean(), abs=5e-6)
    for estimate, low, high in (result.mean_length, result.mean_entropy):
        assert low < estimate < high
    assert result.truncated == np.mean([row["finish_reason"] == "length" for row in rows])
    counts = collections.Counter(row["verdict"] for row in rows)
    usual = [verdict.value for verdict in Verdict if verdict is not Verdict.NOT_JUDGED]
    assert result.verdicts == {verdict: counts[verdict] / 30 for verdict in usual}
    assert result.skill == {"digits": np.mean(["7" in row["completion"] for row in rows])}


def test_the_result_survives_json(whole):
    plain = json.loads(json.dumps(whole[0].to_plain()))
    assert plain["pass_at_k"]["4"] == list(whole[0].pass_at_k[4])
    assert plain["problems"] == 5


def test_at_temperature_0_all_samples_are_the_most_likely_one():
    result, rows = run(temperature=0.0)
    table = np.asarray(MODEL.params["table"])
    for row in rows:
        before = VOCABULARY.index(row["prompt"].split(" ")[-1])
        for token in row["tokens"]:
            assert token == table[before].argmax()
            before = token
    assert {estimate for estimate, _, _ in result.pass_at_k.values()} == {result.pass_at_k[1][0]}


class ThreeOfCountdown(Countdown):
    def problems(self, split):
        return super().problems("test")[:3]


def test_countdown_is_judged_and_probed_through_its_own_tokenizer():
    # After anything but `stop` comes `stop`, and after `stop` the end.
    stop = VOCABULARY.index("stop")
    table = np.full((VOCAB, VOCAB), -1e9, np.float32)
    table[:, stop] = 0
    table[stop, stop], table[stop, EOS] = -1e9, 0
    result, rows = run(ThreeOfCountdown(), params={"table": table}, rows_per_call=13)
    assert [row["completion"] for row in rows] == ["stop"] * 18
    assert [row["tokens"] for row in rows] == [[stop, EOS]] * 18
    assert (result.verdicts["wrong"], result.skill["stopped"], result.truncated) == (1, 1, 0)
    # Equal lengths and entropies say nothing about their variance.
    assert result.mean_length == (2, -math.inf, math.inf)
    assert result.mean_entropy == (0, -math.inf, math.inf)
    # None of 3 problems solved: from 0 to q / (1 + q), q = t² / 3 for t = 4.302653 (2 degrees of
    # freedom).
    for k in (1, 2, 4):
        assert result.pass_at_k[k] == pytest.approx((0, 0, 0.860548), abs=1e-6)
    assert "arithmetic" not in result.skill  # no step was made, so there is no share of right ones


# --- no judgement
# ------------------------------------------------------------------------------------------


def test_completions_end_at_the_stop_strings_of_the_evaluation():
    word = VOCABULARY.index("stop")
    table = np.full((VOCAB, VOCAB), -1e9, np.float32)
    table[:, word] = 0
    _, rows = run(params={"table": table}, stop=["stop"])
    assert {(tuple(row["tokens"]), row["finish_reason"]) for row in rows} == {((word,), "stop")}


def sometimes_out_of_time(problem, text):
    """Short completions of one problem time out, and on very short ones of another the verifier
    crashes.
    """
    if problem.id == 0 and len(text.split()) <= 5:
        return Verdict.TIMEOUT
    if problem.id == 40 and len(text.split()) == 1:
        return Verdict.CRASH
    return None


def test_samples_without_a_judgement_are_outside_of_pass_at_k(whole):
    result, rows = run(FakeTask(sometimes_out_of_time))
    missing = collections.Counter(
        r["problem"] for r in rows if r["verdict"] in ("timeout", "crash")
    )
    assert missing == {0: 2, 40: 1}  # 4 and 5 of 6 are judged
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in whole[1]]
    assert list(result.pass_at_k) == [1, 2, 4]
    for k, (estimate, _, _) in result.pass_at_k.items():
        assert estimate == pytest.approx(brute_force_pass_at_k(rows, k), abs=1e-12)
    assert result.pass_at_k[1] != whole[0].pass_at_k[1]
    assert (result.verdicts["timeout"], result.verdicts["crash"]) == (2 / 30, 1 / 30)
    # Lengths and entropies are facts about the samples, judged or not.
    assert (result.mean_length, result.mean_entropy) == (
        whole[0].mean_length,
        whole[0].mean_entropy,
    )


def test_problems_that_were_never_judged_are_counted_and_left_out_of_pass_at_k():
    task = FakeTask(lambda problem, text: Verdict.TIMEOUT if problem.id in (7, 55) else None)
    result, rows = run(task)
    assert (result.unjudged, result.problems, len(rows)) == (2, 5, 30)
    assert result.pass_at_k_problems == {1: 3, 2: 3, 4: 3}
    judged = [row for row in rows if row["problem"] not in (7, 55)]
    for k, (estimate, _, _) in result.pass_at_k.items():
        assert estimate == pytest.approx(brute_force_pass_at_k(judged, k), abs=1e-12)


def test_nothing_judged_at_all_is_an_error():
    with pytest.raises(RuntimeError, match="none of 30 samples was judged"):
        run(FakeTask(lambda problem, text: Verdict.TIMEOUT))


def test_a_lost_check_costs_its_problem_the_largest_k_and_nobody_else():
    seen = collections.Counter()

    def all_but_one(problem, text):
        seen[problem.id] += 1
        return Verdict.TIMEOUT if problem.id == 7 and seen[7] != 5 else None

    result, rows = run(FakeTask(all_but_one))
    assert result.pass_at_k_problems == {1: 5, 2: 4, 4: 4}
    assert list(result.pass_at_k_of_all) == [1]
    assert result.pass_at_k[1][0] == pytest.approx(brute_force_pass_at_k(rows, 1), abs=1e-12)
    others = [row for row in rows if row["problem"] != 7]
    assert result.pass_at_k[4][0] == pytest.approx(brute_force_pass_at_k(others, 4), abs=1e-12)


def test_a_result_is_the_same_after_it_was_written_and_read(whole):
    assert Evaluation.from_plain(json.loads(json.dumps(whole[0].to_plain()))) == whole[0]


# --- input
# -------------------------------------------------------------------------------------------------


def test_more_problems_than_the_split_has_is_an_error_with_both_numbers():
    with pytest.raises(
        ValueError,
        match=r"^evaluation\.problems: must be at most 6, the size of the split 'dev', got 7$",
    ):
        run(problems=7)


def test_votes_answers_and_ngrams_are_counted_per_problem(whole):
    result, rows = whole
    answers, verdicts = by_problem(rows, "answer"), by_problem(rows, "verdict")
    votes, unique = [], []
    for given, judged in zip(answers, verdicts, strict=True):
        count = collections.Counter(answer for answer in given if answer is not None)
        best = [answer for answer in count if count[answer] == max(count.values())]
        votes.append(np.mean([judged[given.index(answer)] == "correct" for answer in best] or [0]))
        unique += [len(count) / count.total()] if count else []
    assert result.maj_at_n[0] == pytest.approx(np.mean(votes), abs=1e-12)
    assert result.unique_answers[0] == pytest.approx(np.mean(unique), abs=1e-12)
    given = [answer is not None for of_problem in answers for answer in of_problem]
    assert result.answered == pytest.approx(np.mean(given), abs=1e-12)
    assert result.answered_problems == len(unique)
    assert result.avg_at_n == pytest.approx(result.pass_at_k[1], abs=1e-12)

    def grams(tokens, n):
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    for n, value in result.distinct.items():
        pooled = [
            [gram for tokens in group for gram in grams(tokens, n)]
            for group in by_problem(rows, "tokens")
        ]
        assert value[0] == pytest.approx(np.mean([len(set(g)) / len(g) for g in pooled]), abs=1e-12)
    repeated = [
        np.mean([1 - len(set(g)) / len(g) if (g := grams(tokens, 4)) else 0 for tokens in group])
        for group in by_problem(rows, "tokens")
    ]
    assert result.repetition[0] == pytest.approx(np.mean(repeated), abs=1e-12)


def test_samples_without_a_judgement_have_no_vote():
    row = {
        **{"problem": 0, "prompt": "", "right_answer": "", "completion": "a b"},
        **{"finish_reason": "eos", "tokens": [1], "entropy": [0.0], "log_probs": [0.0]},
        "length": 1,
    }
    given = (("1", "correct"), ("2", "timeout"), ("2", "timeout"))
    rows = [row | {"sample": i, "answer": a, "verdict": v} for i, (a, v) in enumerate(given)]
    prompts = SimpleNamespace(problems=[Problem(0, "", "")], left_out=0)
    assert summarize(rows, FakeTask(), prompts, 3).maj_at_n[0] == 1.0


def test_a_task_without_answers_has_no_vote():
    class Silent:
        problems, judge = FakeTask.problems, FakeTask.judge
        _no_judgement, _verdict = staticmethod(lambda problem, text: None), FakeTask._verdict

    result, rows = run(Silent())
    assert result.maj_at_n is None and result.unique_answers is None and result.skill == {}
    assert {row["answer"] for row in rows} == {None}


def test_rows_are_plain_values_and_may_be_fewer_than_the_rollout_has():
    rollout = Rollout(
        prompt_ids=np.ones((1, 1), np.int32),
        prompt_mask=np.ones((1, 1), bool),
        completion_ids=np.array([[21, 5, 9], [16, 2, 9]], np.int32),
        completion_mask=np.array([[1, 1, 1], [1, 1, 0]], bool),
        log_probs=np.array([[-0.12345678, -1, -2], [-3, -4, 9]], np.float32),
        entropy=np.array([[0.5, 1, 2], [3, 4, 9]], np.float32),
        finish_reason=np.array([1, 0], np.int32),
    )
    judgements = [Judgement(Verdict.WRONG), Judgement(Verdict.CRASH)]
    scores = Scores(["7 +  ,", "2"], judgements, ["7", None], {})
    rows = completion_rows(PROBLEMS[:2], [4, 5], rollout, scores)
    assert rows[0] == {
        "problem": 40,
        "sample": 4,
        "prompt": "<bos> 0 : 9",
        "right_answer": "9",
        "completion": "7 +  ,",
        "answer": "7",
        "verdict": "wrong",
        "finish_reason": "length",
        "length": 3,
        "tokens": [21, 5, 9],
        "log_probs": [-0.123457, -1.0, -2.0],
        "entropy": [0.5, 1.0, 2.0],
    }
    assert (rows[1]["tokens"], rows[1]["log_probs"], rows[1]["entropy"]) == (
        [16, 2],
        [-3, -4],
        [3, 4],
    )
    assert json.loads(json.dumps(rows)) == rows
    assert completion_rows(PROBLEMS[:1], [4], rollout, scores) == rows[:1]


# --- a mixture
# ----------------------------------------------------------------------------------------------


def test_sources_have_curves_of_their_own_in_the_result_and_its_table(whole):
    rows = whole[1]
    ids = list(dict.fromkeys(row["problem"] for row in rows))
    problems = [Problem(id, "", "", source="even" if id % 2 == 0 else "odd") for id in ids]
    task = FakeTask()
    samples = len(rows) // len(ids)
    result = summarize(rows, task, SimpleNamespace(problems=problems, left_out=0), samples)
    assert set(result.by_source) == {"even", "odd"}
    for source, curve in result.by_source.items():
        own = [problem for problem in problems if problem.source == source]
        of_source = [row for row in rows if row["problem"] in {problem.id for problem in own}]
        alone = summarize(of_source, task, SimpleNamespace(problems=own, left_out=0), samples)
        assert curve == alone.pass_at_k
        assert result.by_source_problems[source] == alone.pass_at_k_problems
    assert Evaluation.from_plain(json.loads(json.dumps(result.to_plain()))) == result
    table = evaluation_table({"model": result})
    assert "Pass@1, even" in table and "Pass@4, odd" in table
    (even,) = (line for line in table.splitlines() if line.startswith("Pass@1, even"))
    assert even.endswith(f"({sum(id % 2 == 0 for id in ids)} problems)")
    assert whole[0].by_source == {}
    # Results of earlier versions have no counts.
    old = result.to_plain()
    del old["by_source_problems"]
    old = Evaluation.from_plain(json.loads(json.dumps(old)))
    assert old.by_source == result.by_source and old.by_source_problems == {}
    assert "problems)" not in evaluation_table({"model": old})


def test_the_table_says_what_its_intervals_are_and_over_which_problems(whole):
    result = dataclasses.replace(whole[0], answered=0.25, answered_problems=2)
    few, *lines = evaluation_table({"model": result}).splitlines()
    assert "too narrow with fewer than 30 (but for Pass@K" in few
    cells = {line.split("  ")[0]: line for line in lines}
    assert cells["unique answers"].endswith(" (2 problems)")
    assert cells["answered (others: no vote)"].endswith(" 0.250")
    many = evaluation_table({"model": dataclasses.replace(result, problems=30)})
    assert many.startswith("In brackets: 95% interval over problems\n")
    old = dataclasses.replace(result, answered=None, answered_problems=None)
    assert "answered" not in evaluation_table({"model": old})


def test_the_intervals_of_one_problem_are_unknown(whole):
    rows = [row for row in whole[1] if row["problem"] == PROBLEMS[0].id]
    prompts = SimpleNamespace(problems=PROBLEMS[:1], left_out=0)
    result = summarize(rows, FakeTask(), prompts, len(rows))
    assert result.pass_at_k[1][1:] == (0, 1)
    assert result.mean_length[1:] == result.mean_entropy[1:] == (-math.inf, math.inf)
    text = json.dumps(result.to_plain(), allow_nan=False)
    assert json.loads(text)["mean_length"][1:] == [None, None]
    assert Evaluation.from_plain(json.loads(text)) == result
    lines = evaluation_table({"model": result}).splitlines()
    (length,) = (line for line in lines if line.startswith("response length"))
    assert length.endswith(f"{result.mean_length[0]:.1f} [unknown]")
