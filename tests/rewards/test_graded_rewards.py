"""What reads graded rewards: contrast and success of a group, a greedy baseline, evaluations."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from report_runs import sample_row

from entropy_rl.evaluation.compare import compare_runs
from entropy_rl.evaluation.result import Evaluation, summarize
from entropy_rl.evaluation.samples import write_result
from entropy_rl.experience.experience import ScoredGroups, has_contrast
from entropy_rl.experience.exploration import exploration_loss_mask, failed_prompts
from entropy_rl.experience.metrics import rollout_metrics
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.experience.sampler import Sampled, Sampler
from entropy_rl.report.comparison_tables import comparison_tables
from entropy_rl.rewards import build_rewards, graded
from entropy_rl.runs.jsonl import write_jsonl
from entropy_rl.runs.logging import Clock
from entropy_rl.tasks.task import Judgement, Problem, Verdict
from entropy_rl.types import Rollout

P, G, N = 3, 2, 4
WRONG = Verdict.WRONG


def make_sampled(prompts: int, rows: int) -> Sampled:
    """The completion of row b is the token b."""
    tokens = np.broadcast_to(np.arange(rows, dtype=np.int32)[:, None], (rows, N))
    rollout = Rollout(
        prompt_ids=np.ones((prompts, 2), np.int32),
        prompt_mask=np.ones((prompts, 2), bool),
        completion_ids=tokens,
        completion_mask=np.arange(N)[None] < np.ones((rows, 1)),
        log_probs=np.zeros((rows, N), np.float32),
        entropy=np.zeros((rows, N), np.float32),
        finish_reason=np.zeros(rows, np.int32),
    )
    return Sampled(rollout)


def sampler_of(grades, specs=(), greedy=False) -> Sampler:
    """A sampler without a model, whose task grades row b by the b-th of `grades`."""
    tokenizer = SimpleNamespace(
        batch_decode=lambda rows, **_: [str(row[0]) for row in rows], decode=str
    )
    task = SimpleNamespace(judge=lambda problems, texts: [grades[int(text)] for text in texts])
    model = SimpleNamespace(tokenizer=tokenizer)
    rewards = build_rewards(list(specs))
    key = jax.random.key(0)
    return Sampler(None, model, task, rewards, key, G, Clock(), None, greedy)


PROMPTS = PromptBatch(
    [Problem(i, "", "") for i in range(P)], np.ones((P, 2)), np.ones((P, 2)), np.arange(P)
)


def test_a_grade_is_the_reward_and_metrics_of_success_are_those_of_the_verdicts():
    # Graded and never correct; graded and correct once; not judged once.
    grades = [0.2, 0.6, 0.5, 1.0, None, 0.5]
    found = sampler_of(grades).score(PROMPTS, make_sampled(P, P * G))
    rows = found.groups.rows
    np.testing.assert_array_equal(rows["rewards"], np.float32([0.2, 0.6, 0.5, 1, 0, 0.5]))
    assert rows["has_reward"].tolist() == [True, True, True, True, False, True]
    assert "extras" not in rows
    metrics = rollout_metrics(found.rows, G)
    assert metrics["reward"] == pytest.approx(np.mean([0.2, 0.6, 0.5, 1, 0.5]))
    assert metrics["correct"] == pytest.approx(1 / 6)
    assert metrics["groups_none_correct"] == pytest.approx(2 / 3)
    assert metrics["verdict/not_judged"] == pytest.approx(1 / 6)
    # Contrast: rewards differ, whatever the verdicts. The last group has one reward only.
    contrast = has_contrast(rows["rewards"], rows["has_reward"], G)
    assert contrast.tolist() == [True, True, False]
    # Failed: judged, and no verdict is correct, whatever the grades.
    assert failed_prompts(found.groups).tolist() == [True, False, True]
    mask = exploration_loss_mask(
        rows["rewards"], rows["has_reward"], failed_prompts(found.groups), G
    )
    assert mask.tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("name", ["log_probs", "entropy"])
def test_a_rollout_of_a_model_whose_logits_are_not_finite_is_refused(name):
    sampled, sampler = make_sampled(P, P * G), sampler_of([0.0] * P * G)
    array = np.zeros((P * G, N), np.float32)
    array[:, 1] = np.nan  # no token
    off_mask = sampled.rollout.replace(**{name: array})
    assert sampler.score(PROMPTS, Sampled(off_mask)).groups.rows["has_reward"].all()
    array[3, 0] = np.nan
    says = r"^rollout: the model's log-probs are not finite, first in a sample of problem 1; "
    with pytest.raises(FloatingPointError, match=says):
        sampler.score(PROMPTS, Sampled(sampled.rollout.replace(**{name: array})))


def test_contrast_is_of_the_weighted_sum():
    judged = [Judgement(WRONG, a, {"b": b}) for a, b in ((1, 0), (0, 1), (1, 1), (1, 0))] * 2
    specs = [{"name": "graded"}, {"name": "part", "part": "b", "weight": 1}]
    for weight, expected in ((1, [False, True, False]), (2, [True, True, True])):
        specs[1]["weight"] = weight
        rows = sampler_of(judged, specs).score(PROMPTS, make_sampled(P, P * G)).groups.rows
        assert has_contrast(rows["rewards"], rows["has_reward"], G).tolist() == expected
        assert rows["extras"]["reward/b"][:, 0].tolist() == [0, 1, 1, 0, 0, 1]


def test_the_greedy_completion_has_the_same_rewards_and_takes_its_group_along():
    grades = [0.25, 0.5, None, 1, 1, 1]
    specs = [{"name": "graded"}, {"name": "part", "part": "x", "weight": 0}]
    judged = [g if g is None else Judgement(WRONG, g, {"x": 1}) for g in grades]
    sampler = sampler_of(judged, specs, greedy=True)
    found = sampler.score(PROMPTS, make_sampled(P, P * G), make_sampled(P, P))
    rows = found.groups.rows
    assert rows["greedy_rewards"].tolist() == [0.25, 0.25, 0.5, 0.5, 0, 0]
    assert rows["has_reward"].tolist() == [True, True, False, True, False, False]
    assert rollout_metrics(found.rows, G)["greedy_reward"] == 0.375


def test_a_reward_that_does_not_judge_leaves_the_baseline_and_is_counted():
    specs = [{"name": "graded"}, {"name": f"{__name__}:known"}]
    found = sampler_of([0.5] * 6, specs).score(PROMPTS, make_sampled(P, P * G))
    assert found.groups.rows["has_reward"].tolist() == [True, True, True, False, True, True]
    metrics = rollout_metrics(found.rows, G)
    assert metrics["without_reward"] == pytest.approx(1 / 6)
    assert (metrics["reward/graded"], metrics["reward/graded_std"]) == (0.5, 0)
    assert metrics["reward/known"] == pytest.approx(np.mean([0, 1, 2, 4, 5]))
    assert metrics["reward/known_std"] == pytest.approx(np.std([0, 1, 2, 4, 5]))
    assert metrics["groups_not_judged"] == 0 and metrics["verdict/wrong"] == 1


def known(completions):
    return [None if text == "3" else int(text) for text in completions]


def test_groups_are_selected_with_their_rewards():
    found = sampler_of([0.5] * 6, [{"name": "graded", "label": "x"}])
    groups: ScoredGroups = found.score(PROMPTS, make_sampled(P, P * G)).groups
    assert groups.take(np.array([True, False, True])).rows["extras"]["reward/x"].shape == (4, 1)


def test_rewards_of_turns_have_the_weight_of_the_reward_that_has_them():
    rollout = make_sampled(P, P * G).rollout
    mask = np.broadcast_to(np.arange(N) == 0, (P * G, N)).copy()
    mask[0, 2] = True  # behind an observation
    judged = [Judgement(WRONG, 0.25, turns=1.0)] * (P * G)
    turn_rewards = np.ones((P * G, N), np.float32)
    sampled = Sampled(rollout.replace(completion_mask=mask), judged, turn_rewards)
    sampler = sampler_of([], [{"name": "graded", "weight": 2}])
    found = sampler.score(PROMPTS, sampled)
    rows = found.groups.rows
    np.testing.assert_array_equal(rows["extras"]["turn_rewards"], np.full((P * G, N), 2.0))
    np.testing.assert_array_equal(rows["rewards"], np.full(P * G, 2 * 1.25))
    assert rollout_metrics(found.rows, G)["turns"] == pytest.approx(7 / 6)


def test_the_grade_of_a_correct_completion_is_larger_than_that_of_a_wrong_one():
    with pytest.raises(ValueError, match=r"^graded\.right: must be > wrong \(0\.0\), got 0\.0$"):
        graded(0.0, 0.0)


# --- evaluations
# ------------------------------------------------------------------------------------------------


def write_graded(directory, shift: float) -> Evaluation:
    """An evaluation of 4 problems with 3 samples, one of which was not judged."""
    draw = np.random.default_rng(0)
    rows = [
        sample_row(draw, p, s, s == 0, graded=p / 10 + shift, parts={"steps": p + s})
        for p in range(4)
        for s in range(3)
    ]
    rows[-1] = sample_row(draw, 3, 2, False) | {"verdict": "not_judged"}
    directory.mkdir()
    write_jsonl(directory / "samples.jsonl", rows)
    problems = [Problem(i, "", "1") for i in range(4)]
    prompts = SimpleNamespace(problems=problems, left_out=0)
    result = summarize(rows, SimpleNamespace(), prompts, 3)
    write_result(directory, result)
    return result


def test_an_evaluation_has_mean_grades_and_compare_tests_them(tmp_path):
    result = write_graded(tmp_path / "a", 0.0)
    assert result.grades["graded"][0] == pytest.approx(0.15)
    # The last sample has no parts: (1 + 2 + 3 + 3.5) / 4.
    assert result.grades["steps"][0] == pytest.approx(2.375)
    assert result.verdicts["not_judged"] == pytest.approx(1 / 12)
    assert Evaluation.from_plain(json.loads(json.dumps(result.to_plain()))) == result
    write_graded(tmp_path / "b", 0.5)
    comparison = compare_runs(tmp_path / "a", tmp_path / "b")
    graded, steps = comparison.grades
    assert (graded.name, graded.difference) == ("graded", pytest.approx(0.5))
    assert (steps.name, steps.difference, steps.problems) == ("steps", 0, 4)
    assert comparison.pass_at_k[0].difference == 0
    titles = [title for title, *_ in comparison_tables(comparison)]
    assert titles[-1].startswith("Grades: means of the task's graded reward")
