"""From tokens to texts, verdicts and rewards, on rollouts written by hand."""

import json
from collections import Counter

import numpy as np
import pytest

from entropy_rl.config.rewards import RewardConfig
from entropy_rl.experience.scoring import (
    Scores,
    add_probes,
    decode_completions,
    probe_shares,
    score,
    verdict_shares,
)
from entropy_rl.tasks import as_judgement
from entropy_rl.tasks.countdown import Countdown, build_tokenizer
from entropy_rl.tasks.task import JudgeError, Problem, Verdict
from entropy_rl.types import Rollout

TOKENIZER = build_tokenizer()
NAN = float("nan")
CORRECT, WRONG, UNPARSABLE, TIMEOUT, CRASH, NOT_JUDGED = Verdict
PROBLEM = Problem(0, "<bos> 2 3 7 : 27", "<bos> 2 3 7 : 27")


def make_rollout(completions: list[list[int]], columns: int = 24, junk: int = 5) -> Rollout:
    """Rows of tokens; behind their end stands `junk`, under the mask."""
    rows = len(completions)
    ids = np.full((rows, columns), junk, np.int32)
    mask = np.zeros((rows, columns), bool)
    for i, row in enumerate(completions):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = True
    return Rollout(
        prompt_ids=np.ones((rows, 1), np.int32),
        prompt_mask=np.ones((rows, 1), bool),
        completion_ids=ids,
        completion_mask=mask,
        log_probs=np.zeros((rows, columns), np.float32),
        entropy=np.zeros((rows, columns), np.float32),
        finish_reason=np.zeros(rows, np.int32),
    )


def words(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def scores_of(*values) -> Scores:
    """Scores of empty texts with verdicts or judgements."""
    judgements = [as_judgement(value) for value in values]
    return Scores([""] * len(values), judgements, [None] * len(values), {})


class FakeTask:
    """Returns the verdicts that it was given, and keeps what it was asked."""

    def __init__(self, verdicts):
        self.verdicts = verdicts
        self.asked = None

    def problems(self, split):
        return [PROBLEM]

    def judge(self, problems, completions):
        self.asked = (problems, completions)
        return self.verdicts


# --- decoding
# ----------------------------------------------------------------------------------------------


def test_texts_end_with_the_mask_and_leave_special_tokens_out():
    rollout = make_rollout([[21, 5, 16, 2], [0, 1, 21, 3, 2, 16], [2], [21, 5]])
    assert decode_completions(TOKENIZER, rollout) == ["7 + 2", "7 <unk> 2", "", "7 +"]
    # More rows than are decoded at once.
    many = make_rollout([[21]] * 63 + [[21, 5]] * 63 + [[16]])
    assert decode_completions(TOKENIZER, many) == ["7"] * 63 + ["7 +"] * 63 + ["2"]


# --- judging
# -----------------------------------------------------------------------------------------------


def test_a_value_error_of_a_task_names_its_method_and_other_errors_are_its_own():
    class Mine(FakeTask):
        def judge(self, problems, completions):
            return [self.verdicts(text) for text in completions]

    rollout = make_rollout([words("7 + 2")])
    with pytest.raises(JudgeError, match=r"^task\.name: Mine\.judge: ValueError: invalid literal"):
        score(Mine(int), TOKENIZER, [PROBLEM], rollout)
    with pytest.raises(TypeError):
        score(Mine(sum), TOKENIZER, [PROBLEM], rollout)


def test_each_row_is_judged_against_its_own_problem():
    solved = "7 + 2 = 9 3 : 27 9 * 3 = 27 : 27 done"
    other = Problem(1, "<bos> 2 3 7 : 12", "<bos> 2 3 7 : 12")
    rollout = make_rollout(
        [words(f"{solved} <eos>"), words(solved), words(f"{solved} <eos>"), words("7 7")]
    )
    scores = score(Countdown(), TOKENIZER, [PROBLEM, PROBLEM, other, PROBLEM], rollout)
    assert scores.texts == [solved, solved, solved, "7 7"]
    assert scores.verdicts == [CORRECT, CORRECT, WRONG, UNPARSABLE]
    assert scores.probe["arithmetic"] == (6, 6)
    assert scores.probe["false_done"] == (1, 4)


def test_problems_are_those_of_the_rows_and_not_of_the_prompts():
    task = FakeTask([CORRECT])  # as of a `zip` of problems and completions that is not strict
    with pytest.raises(ValueError, match=r"^score: problems: must be one for each of 2 rows, as"):
        score(task, TOKENIZER, [PROBLEM], make_rollout([[21], [16]]))
    assert task.asked is None


def test_a_task_without_a_probe_has_no_skill_measures():
    task = FakeTask([WRONG, CORRECT])
    scores = score(task, TOKENIZER, [PROBLEM] * 2, make_rollout([[21], [16, 2]]))
    assert task.asked == ([PROBLEM] * 2, ["7", "2"])
    assert scores.probe == {} and probe_shares(scores.probe) == {}


@pytest.mark.parametrize(
    ("verdicts", "count"),
    [([CORRECT], 1), ([CORRECT] * 3, 3), ([], 0)],
)
def test_a_judge_that_does_not_return_one_judgement_per_completion_is_named(verdicts, count):
    with pytest.raises(
        RuntimeError,
        match=rf"^FakeTask\.judge: must return one judgement for each of 2 .*, got {count}$",
    ):
        score(FakeTask(verdicts), TOKENIZER, [PROBLEM] * 2, make_rollout([[21], [16]]))


def test_a_lazy_judge_is_computed_where_its_method_is_named():
    def judgements(texts):
        return (bool(int(text)) for text in texts)

    rollout = make_rollout([words("7"), words("+")])
    with pytest.raises(JudgeError, match=r"^task\.name: FakeTask\.judge: ValueError: invalid lit"):
        score(FakeTask(judgements(["7", "+"])), TOKENIZER, [PROBLEM] * 2, rollout)
    scores = score(FakeTask(judgements(["7", "0"])), TOKENIZER, [PROBLEM] * 2, rollout)
    assert scores.verdicts == [CORRECT, WRONG]


# --- final answers and skill measures
# ----------------------------------------------------------------------------------------


class Measured(FakeTask):
    """Returns the answers and measures that it was given."""

    def __init__(self, answers=("7", None), measures=None):
        super().__init__([CORRECT, WRONG])
        self.answers, self.measures = answers, measures or {}

    def final_answers(self, completions):
        return self.answers

    def probe(self, problems, completions):
        return self.measures


def scores_of_task(task) -> Scores:
    return score(task, TOKENIZER, [PROBLEM] * 2, make_rollout([words("7"), words("2")]))


def test_final_answers_are_texts_or_none_one_for_each_completion():
    assert scores_of_task(Measured(("7", None))).answers == ["7", None]
    assert scores_of_task(Measured(map(str, (7, 8)))).answers == ["7", "8"]
    for wrong in (["7"], ["7", 7], "77", {"7": 1}, None, ["7", "8", "9"]):
        with pytest.raises(JudgeError) as caught:
            scores_of_task(Measured(wrong))
        assert str(caught.value) == (
            "Measured.final_answers: must return a text or None for each of 2 completions, got "
            f"{wrong!r}"
        )
    with pytest.raises(JudgeError, match=r"^task\.name: Measured\.final_answers: ValueError: inva"):
        scores_of_task(Measured(str(int(text)) for text in "7+"))


def test_skill_measures_are_plain_pairs_of_numbers_by_name():
    found = scores_of_task(Measured(measures={"a": (np.float32(3), np.int64(4))})).probe
    assert json.dumps(found) == '{"a": [3.0, 4.0]}'
    for wrong in ([1], {"a": 1}, {"a": (1, 2, 3)}, {"a": (1, NAN)}, {1: (1, 2)}, {"a": "12"}):
        with pytest.raises(JudgeError) as caught:
            scores_of_task(Measured(measures=wrong))
        assert str(caught.value) == (
            "Measured.probe: must return pairs (numerator, denominator) of finite numbers by name, "
            f"got {wrong!r}"
        )


# --- what follows from verdicts
# ----------------------------------------------------------------------------


def test_a_failed_and_a_missing_check_are_no_judgement_and_only_correct_is_correct():
    scores = scores_of(*Verdict)
    assert scores.has_reward.tolist() == [True, True, True, False, False, False]
    assert scores.correct.tolist() == [True, False, False, False, False, False]
    assert scores.has_reward.dtype == scores.correct.dtype == bool


def test_rewards_by_hand():
    scores = scores_of(UNPARSABLE, CORRECT, WRONG, CORRECT)
    rewards = scores.rewards(RewardConfig())
    assert rewards.tolist() == [-1, 1, -1, 1] and rewards.dtype == np.float32
    assert scores.rewards(RewardConfig(correct=0.5, wrong=0.0)).tolist() == [0, 0.5, 0, 0.5]


def test_the_reward_of_a_row_without_a_judgement_is_at_least_finite():
    # 0 * NaN would get into sums that the row is outside of.
    assert np.isfinite(scores_of(TIMEOUT, CRASH).rewards(RewardConfig())).all()


def test_a_grade_of_the_task_is_the_reward_and_other_verdicts_have_theirs():
    scores = scores_of(0.25, CORRECT, 1.0, WRONG)
    assert scores.rewards(RewardConfig()).tolist() == [0.25, 1, 1, -1]
    assert scores.correct.tolist() == [False, True, True, False]


def test_the_shares_of_all_verdicts_add_up_to_one():
    counts = Counter([WRONG, TIMEOUT, WRONG, CORRECT])
    shares = {"correct": 0.25, "wrong": 0.5, "unparsable": 0, "timeout": 0.25, "crash": 0}
    assert verdict_shares(counts) == shares
    # A line of metrics has it only where it occurs, so that those of earlier runs are the same.
    assert verdict_shares(counts | Counter([NOT_JUDGED] * 4)) == {
        **{name: share / 2 for name, share in shares.items()},
        "not_judged": 0.5,
    }


# --- skill measures
# ----------------------------------------------------------------------------------------


def test_skill_measures_become_shares_where_something_was_counted():
    assert probe_shares({"a": (3, 4), "b": (0, 2), "c": (0, 0)}) == {"skill/a": 0.75, "skill/b": 0}


def test_pooled_skill_is_the_share_of_the_sums_and_not_the_mean_of_shares():
    pooled = add_probes({"a": (1, 1), "b": (2, 3)}, {"a": (0, 3), "c": (1, 2)})
    assert pooled == {"a": (1, 4), "b": (2, 3), "c": (1, 2)}
    assert probe_shares(pooled)["skill/a"] == 0.25
    assert add_probes({}, pooled) == add_probes(pooled, {}) == pooled
