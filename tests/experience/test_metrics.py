"""Metrics of sampled completions, from verdicts written by hand."""

import numpy as np
import pytest

from entropy_rl.experience.metrics import ScoredRows, correct_by_source, rollout_metrics
from entropy_rl.experience.scoring import VERDICTS, Scores
from entropy_rl.tasks import as_judgement
from entropy_rl.tasks.task import Problem, Verdict

CORRECT, WRONG, TIMEOUT = Verdict.CORRECT, Verdict.WRONG, Verdict.TIMEOUT


def test_groups_are_counted_by_their_judged_rows():
    groups = [
        [CORRECT, CORRECT],
        [CORRECT, TIMEOUT],
        [WRONG, TIMEOUT],
        [TIMEOUT, TIMEOUT],
        [CORRECT, WRONG],
    ]
    verdicts = np.array([VERDICTS.index(verdict) for group in groups for verdict in group])
    has_reward, rewards = verdicts != VERDICTS.index(TIMEOUT), verdicts == VERDICTS.index(CORRECT)
    zeros = np.zeros(10)
    rows = ScoredRows(zeros, zeros > 0, rewards * 1.0, verdicts, has_reward, {}, {}, {})
    found = rollout_metrics(rows, 2)
    names = ("groups_all_correct", "groups_none_correct", "groups_not_judged", "correct", "reward")
    assert [found[name] for name in names] == pytest.approx([0.4, 0.2, 0.2, 0.4, 4 / 6])


def test_correct_completions_are_counted_for_each_source_that_has_a_name():
    problems = [Problem(i, "?", "", source=source) for i, source in enumerate(("a", "a", "b", ""))]
    judgements = [as_judgement(verdict) for verdict in (CORRECT, WRONG, WRONG, CORRECT)]
    scores = Scores([""] * 4, judgements, [None] * 4, {})
    assert correct_by_source(problems, scores) == {"correct/a": (1, 2), "correct/b": (0, 1)}
