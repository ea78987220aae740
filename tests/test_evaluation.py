"""Pass@K: the same however rows are grouped, and equal to a count of the rows."""

import collections
import functools
import itertools
import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from policies import table_policy

from entropy_rl.config import EvaluationConfig
from entropy_rl.evaluation import Evaluation, completion_rows, evaluate, evaluation_prompts, watch
from entropy_rl.loading import Model
from entropy_rl.rollout import make_generate
from entropy_rl.scoring import Scores
from entropy_rl.tasks.countdown import Countdown, build_tokenizer
from entropy_rl.tasks.countdown.tokenizer import VOCABULARY
from entropy_rl.tasks.task import Problem, Verdict
from entropy_rl.types import Rollout

EOS, VOCAB, NEW = 2, len(VOCABULARY), 6
# Not in the order of their places, and the prompts end with different words, so that the table answers each
# in its own way. One prompt is longer than the limit that is used here.
PROBLEMS = [
    Problem(id, f"<bos> {' '.join(map(str, range(length)))} : {target}", str(target))
    for id, length, target in [(40, 1, 9), (3, 4, 12), (21, 9, 20), (7, 2, 31), (0, 3, 42), (55, 1, 44)]
]
TOO_LONG = PROBLEMS[2]
MAX_PROMPT = 8


class FakeTask:
    """Correct is what begins with a word in the first third of the numbers, or ends at once."""

    def __init__(self, no_judgement=lambda problem, text: None):
        self._no_judgement = no_judgement

    def problems(self, split):
        assert split == "dev"
        return PROBLEMS

    def judge(self, problems, completions):
        return [
            self._no_judgement(p, text) or self._verdict(text)
            for p, text in zip(problems, completions, strict=True)
        ]

    def _verdict(self, text):
        first = text.split(" ")[0]
        if not first.isdigit():
            return Verdict.UNPARSABLE
        return Verdict.CORRECT if int(first) < 17 else Verdict.WRONG

    def probe(self, problems, completions):
        return {"digits": (sum("7" in text for text in completions), len(completions)), "never": (0, 0)}


def make_model() -> Model:
    policy = table_policy(VOCAB)
    # Ends after three tokens or so, and differs between prompts.
    table = 1.5 * policy.init(jax.random.key(5))["table"]
    params = {"table": table.at[:, EOS].set(3.0)}
    return Model(policy, params, None, build_tokenizer(), (EOS,), 0, Path())


MODEL = make_model()


def run(task=None, *, params=MODEL.params, seed=11, on_rows=None, **changes):
    """The evaluation, and all rows as they came."""
    settings = {"split": "dev", "samples": 6, "max_new_tokens": NEW, "temperature": 0.8, "top_p": 0.9}
    calls = []

    def listen(done, total, rows):
        calls.append((done, total, rows))
        if on_rows:
            on_rows(rows)

    task, config = task or FakeTask(), EvaluationConfig(**(settings | changes))
    prompts = evaluation_prompts(config, task, MODEL.tokenizer, MAX_PROMPT)
    result = evaluate(MODEL, params, task, prompts, config, seed=seed, on_rows=listen)
    rows = [row for _, _, batch in calls for row in batch]
    assert [done for done, _, _ in calls] == np.cumsum([len(batch) for _, _, batch in calls]).tolist()
    assert {total for _, total, _ in calls} == {len(rows)}
    return result, rows


@pytest.fixture(scope="module", autouse=True)
def each_sampler_is_compiled_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("entropy_rl.evaluation.make_generate", functools.cache(make_generate))
        yield


@pytest.fixture(scope="module")
def whole():
    return run(rows_per_call=1000)


def same(value):
    """Compared exactly, but for the last bits of floats: sums over rows depend on how many there are."""
    if isinstance(value, float):
        return pytest.approx(value, abs=5e-6)
    if isinstance(value, dict):
        return {key: same(inner) for key, inner in value.items()}
    return [same(inner) for inner in value] if isinstance(value, list | tuple) else value


# --- the rows ----------------------------------------------------------------------------------------------


# 30 rows in all, of 5 problems: one at a time; a part of a problem that does not divide its 6 samples; two
# problems and a row to spare, so that the last call is moved back.
@pytest.mark.parametrize("rows_per_call", [1, 4, 13])
def test_nothing_depends_on_the_rows_per_call(whole, rows_per_call):
    result, rows = run(rows_per_call=rows_per_call)
    assert [{**row, "log_probs": None, "entropy": None} for row in rows] == [
        {**row, "log_probs": None, "entropy": None} for row in whole[1]
    ]
    assert rows == same(whole[1])
    assert result.pass_at_k == whole[0].pass_at_k
    assert json.loads(json.dumps(result.to_plain())) == same(json.loads(json.dumps(whole[0].to_plain())))


def test_every_sample_of_every_problem_comes_exactly_once_and_in_order(whole):
    _, rows = whole
    kept = [problem.id for problem in PROBLEMS if problem is not TOO_LONG]
    assert [(row["problem"], row["sample"]) for row in rows] == list(itertools.product(kept, range(6)))


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


# --- the result --------------------------------------------------------------------------------------------


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
        shares.append(np.mean(["correct" in subset for subset in itertools.combinations(judged, k)]))
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
    assert result.verdicts == {verdict.value: counts[verdict.value] / 30 for verdict in Verdict}
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
    assert result.mean_length == (2, 2, 2) and result.mean_entropy == (0, 0, 0)
    assert result.pass_at_k == dict.fromkeys((1, 2, 4), (0, 0, 0))
    assert "arithmetic" not in result.skill  # no step was made, so there is no share of right ones


# --- no judgement ------------------------------------------------------------------------------------------


def sometimes_out_of_time(problem, text):
    """Short completions of one problem time out, and on very short ones of another the verifier crashes."""
    if problem.id == 0 and len(text.split()) <= 5:
        return Verdict.TIMEOUT
    if problem.id == 40 and len(text.split()) == 1:
        return Verdict.CRASH
    return None


def test_samples_without_a_judgement_are_outside_of_pass_at_k(whole):
    result, rows = run(FakeTask(sometimes_out_of_time))
    missing = collections.Counter(r["problem"] for r in rows if r["verdict"] in ("timeout", "crash"))
    assert missing == {0: 2, 40: 1}  # 4 and 5 of 6 are judged
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in whole[1]]
    assert list(result.pass_at_k) == [1, 2, 4]
    for k, (estimate, _, _) in result.pass_at_k.items():
        assert estimate == pytest.approx(brute_force_pass_at_k(rows, k), abs=1e-12)
    assert result.pass_at_k[1] != whole[0].pass_at_k[1]
    assert (result.verdicts["timeout"], result.verdicts["crash"]) == (2 / 30, 1 / 30)
    # Lengths and entropies are facts about the samples, judged or not.
    assert (result.mean_length, result.mean_entropy) == (whole[0].mean_length, whole[0].mean_entropy)


def test_problems_that_were_never_judged_are_counted_and_left_out_of_pass_at_k():
    task = FakeTask(lambda problem, text: Verdict.TIMEOUT if problem.id in (7, 55) else None)
    result, rows = run(task)
    assert (result.unjudged, result.problems, len(rows)) == (2, 5, 30)
    assert result.pass_at_k_problems == {1: 3, 2: 3, 4: 3}
    judged = [row for row in rows if row["problem"] not in (7, 55)]
    for k, (estimate, _, _) in result.pass_at_k.items():
        assert estimate == pytest.approx(brute_force_pass_at_k(judged, k), abs=1e-12)


def test_nothing_judged_at_all_is_an_error_after_all_samples_are_handed_out():
    written = []
    with pytest.raises(RuntimeError, match="none of 30 samples was judged"):
        run(FakeTask(lambda problem, text: Verdict.CRASH), on_rows=written.extend)
    assert len(written) == 30


def test_a_lost_check_costs_its_problem_the_largest_k_and_nobody_else():
    seen = collections.Counter()

    def all_but_one(problem, text):
        seen[problem.id] += 1
        return Verdict.TIMEOUT if problem.id == 7 and seen[7] != 5 else None

    result, rows = run(FakeTask(all_but_one))
    assert result.pass_at_k_problems == {1: 5, 2: 4, 4: 4}
    assert result.pass_at_k[1][0] == pytest.approx(brute_force_pass_at_k(rows, 1), abs=1e-12)
    others = [row for row in rows if row["problem"] != 7]
    assert result.pass_at_k[4][0] == pytest.approx(brute_force_pass_at_k(others, 4), abs=1e-12)


def test_a_result_is_the_same_after_it_was_written_and_read(whole):
    assert Evaluation.from_plain(json.loads(json.dumps(whole[0].to_plain()))) == whole[0]


# --- input -------------------------------------------------------------------------------------------------


def test_more_problems_than_the_split_has_is_an_error_with_both_numbers():
    with pytest.raises(ValueError, match=r"^evaluation\.problems: 7 .* the split 'dev' has 6 problems$"):
        run(problems=7)


def test_a_result_without_a_listener_is_the_same(whole):
    config = EvaluationConfig("dev", samples=6, max_new_tokens=NEW, temperature=0.8, top_p=0.9)
    prompts = evaluation_prompts(config, FakeTask(), MODEL.tokenizer, MAX_PROMPT)
    assert evaluate(MODEL, MODEL.params, FakeTask(), prompts, config, seed=11) == whole[0]


def test_an_evaluation_that_is_watched_shows_how_far_it_is_and_can_be_stopped():
    class Stop:
        calls = 0

        def act(self, text):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt(text)

    progress = types.SimpleNamespace(said=[])
    progress.note = progress.said.append
    on_rows = watch(progress, Stop())
    with pytest.raises(KeyboardInterrupt, match="stopped during an evaluation"):
        run(rows_per_call=4, on_rows=lambda rows: on_rows(len(rows), 30, rows))
    assert progress.said == [f"evaluation: {n}/30 samples" for n in (4, 2, 4)]


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
    scores = Scores(["7 +  ,", "2"], [Verdict.WRONG, Verdict.CRASH], {})
    rows = completion_rows(PROBLEMS[:2], [4, 5], rollout, scores)
    assert rows[0] == {
        "problem": 40,
        "sample": 4,
        "prompt": "<bos> 0 : 9",
        "completion": "7 +  ,",
        "verdict": "wrong",
        "finish_reason": "length",
        "tokens": [21, 5, 9],
        "log_probs": [-0.123457, -1.0, -2.0],
        "entropy": [0.5, 1.0, 2.0],
    }
    assert (rows[1]["tokens"], rows[1]["log_probs"], rows[1]["entropy"]) == ([16, 2], [-3, -4], [3, 4])
    assert json.loads(json.dumps(rows)) == rows
    assert completion_rows(PROBLEMS[:1], [4], rollout, scores) == rows[:1]
