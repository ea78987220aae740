"""Metrics of the sampled completions, over the rows of all processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.scoring import VERDICTS, Scores, add_probes, verdict_shares
from entropy_rl.rewards import RewardValues
from entropy_rl.tasks.task import Problem, Verdict
from entropy_rl.types import FinishReason, Rollout

# Ratios that are metrics even if nothing was counted; others are left out then.
_IF_NOTHING_WAS_COUNTED = {"greedy_reward": float("nan"), "explored_solved": 0.0}


class ScoredRows(NamedTuple):
    """Sampled rows, reduced to what metrics need; rows of several rounds or processes are pooled.

    Attributes:
      lengths: int[B], tokens of the completions.
      truncated: bool[B].
      rewards: f32[B].
      verdicts: int32[B], indices into `VERDICTS`.
      has_reward: bool[B].
      by_label: f32[B] of each named reward, NaN where there is none; empty without `rewards:`.
      ratios: Metrics that are a sum over a count, by name: (sum, count).
      totals: Metrics that are sums, by name.
    """

    lengths: np.ndarray
    truncated: np.ndarray
    rewards: np.ndarray
    verdicts: np.ndarray
    has_reward: np.ndarray
    by_label: dict[str, np.ndarray]
    ratios: dict[str, tuple[float, float]]
    totals: dict[str, float]

    def add_ratios(self, **ratios: tuple[float, float]) -> ScoredRows:
        """Add metrics that are a sum over a count."""
        return self._replace(ratios=self.ratios | ratios)


def scored_rows(rollout: Rollout, scores: Scores, rewards: RewardValues) -> ScoredRows:
    """The rows of a rollout, with the skill measures of its task.

    Args:
      rollout: Host copies.
      scores: Of its rows.
      rewards: Of its rows.
    """
    return ScoredRows(
        lengths=rollout.completion_mask.sum(-1),
        truncated=rollout.finish_reason == FinishReason.LENGTH,
        rewards=rewards.total,
        verdicts=scores.codes,
        has_reward=rewards.has_reward,
        by_label=rewards.by_label,
        ratios={f"skill/{name}": tuple(ratio) for name, ratio in scores.probe.items()},
        totals={},
    )


def correct_by_source(
    problems: Sequence[Problem], scores: Scores
) -> dict[str, tuple[float, float]]:
    """Correct completions of each dataset of a mixture, as `correct/SOURCE` -> (sum, count)."""
    found: dict[str, tuple[float, float]] = {}
    for problem, correct in zip(problems, scores.correct.tolist(), strict=True):
        if problem.source:
            right, count = found.get(f"correct/{problem.source}", (0.0, 0.0))
            found[f"correct/{problem.source}"] = right + correct, count + 1
    return found


def part_means(scores: Scores) -> dict[str, tuple[float, float]]:
    """Means of the parts of judgements, as `part/NAME` -> (sum, count)."""
    found: dict[str, tuple[float, float]] = {}
    for judgement in scores.judgements:
        parts = {f"part/{name}": (value, 1.0) for name, value in judgement.parts.items()}
        found = add_probes(found, parts)
    return found


def gather_rows(own: ScoredRows) -> ScoredRows:
    """The rows of all processes; collective."""
    if hosts.count() == 1:
        return own
    *arrays, by_label, ratios, totals = own
    named = {label: values.tolist() for label, values in by_label.items()}
    return pool_rows(hosts.gather([*(array.tolist() for array in arrays), named, ratios, totals]))


def pool_rows(parts: Iterable[ScoredRows | list]) -> ScoredRows:
    """Concatenate rows, and add up ratios and totals."""
    *columns, named, ratios, totals = zip(*parts, strict=True)
    by_label = {name: np.concatenate([part[name] for part in named]) for name in named[0]}
    pooled: dict[str, tuple[float, float]] = {}
    for part in ratios:
        pooled = add_probes(pooled, part)
    names = dict.fromkeys(name for part in totals for name in part)
    sums = {name: sum(part.get(name, 0) for part in totals) for name in names}
    return ScoredRows(*(np.concatenate(column) for column in columns), by_label, pooled, sums)


def rollout_metrics(rows: ScoredRows, group_size: int) -> dict[str, float]:
    """Compute means over rows, fractions of groups, ratios and totals.

    Args:
      rows: Whole groups.
      group_size: Consecutive rows of a prompt.

    Returns:
      Values by the metric names of metrics.jsonl.
    """
    verdicts = rows.verdicts.reshape(-1, group_size)
    correct = verdicts == VERDICTS.index(Verdict.CORRECT)
    has_reward = rows.has_reward.reshape(verdicts.shape)
    rewards = rows.rewards[has_reward.reshape(-1)]
    found = {
        name: part / whole if whole else _IF_NOTHING_WAS_COUNTED[name]
        for name, (part, whole) in rows.ratios.items()
        if whole or name in _IF_NOTHING_WAS_COUNTED
    }
    counts = Counter(VERDICTS[i] for i in rows.verdicts)
    return {
        "reward": float(rewards.mean()) if rewards.size else float("nan"),
        "correct": float(correct.mean()),
        "groups_all_correct": float((has_reward.any(-1) & (correct | ~has_reward).all(-1)).mean()),
        "groups_none_correct": float((has_reward.any(-1) & ~correct.any(-1)).mean()),
        "groups_not_judged": float((~has_reward.any(-1)).mean()),
        "length": float(rows.lengths.mean()),
        "truncated": float(rows.truncated.mean()),
        **{f"verdict/{name}": share for name, share in verdict_shares(counts).items()},
        **_of_named_rewards(rows),
        **found,
        **{name: float(total) for name, total in rows.totals.items()},
    }


def _of_named_rewards(rows: ScoredRows) -> dict[str, float]:
    """Mean and standard deviation of each named reward, and the share of rows without a reward."""
    if not rows.by_label:
        return {}
    metrics = {"without_reward": float(1 - rows.has_reward.mean())}
    for label, values in rows.by_label.items():
        known = np.asarray(values, np.float64)[~np.isnan(values)]
        mean, std = (known.mean(), known.std()) if known.size else (np.nan, np.nan)
        metrics |= {f"reward/{label}": float(mean), f"reward/{label}_std": float(std)}
    return metrics
