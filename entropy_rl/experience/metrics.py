"""What a rollout was like, in numbers: over the rows of all processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from entropy_rl.config.train import RewardConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.scoring import Scores, add_probes, probe_shares
from entropy_rl.tasks.task import Verdict
from entropy_rl.types import FinishReason, Rollout


class Judged(NamedTuple):
    """Rows of a rollout, as far as the metrics look at them."""

    lengths: np.ndarray  # int[B], tokens of completions
    truncated: np.ndarray  # bool[B]
    rewards: np.ndarray  # f32[B]
    verdicts: np.ndarray  # str[B]
    probe: dict[str, tuple[float, float]]

    @property
    def has_reward(self) -> np.ndarray:
        """bool[B], which rows have a judgement."""
        return np.isin(
            self.verdicts, [verdict.value for verdict in Verdict if verdict.is_judgement]
        )


def judged_rows(rollout: Rollout, scores: Scores, config: RewardConfig) -> Judged:
    """The rows of this process."""
    return Judged(
        lengths=rollout.completion_mask.sum(-1),
        truncated=rollout.finish_reason == FinishReason.LENGTH,
        rewards=scores.rewards(config),
        verdicts=np.array([verdict.value for verdict in scores.verdicts]),
        probe=scores.probe,
    )


def gather_judged(own: Judged) -> Judged:
    """The rows of all processes; every process must ask."""
    *arrays, probe = own
    if hosts.count() == 1:
        return own
    return pool_judged(hosts.gather([*(array.tolist() for array in arrays), probe]))


def pool_judged(parts: Iterable[Judged | list]) -> Judged:
    """Rows of several parts, in their order."""
    *columns, probes = zip(*parts, strict=True)
    pooled: dict[str, tuple[float, float]] = {}
    for part in probes:
        pooled = add_probes(pooled, part)
    return Judged(*(np.concatenate(column) for column in columns), pooled)


def rollout_metrics(judged: Judged, group_size: int) -> dict[str, float]:
    """Means over rows and shares of groups.

    Args:
      judged: Whole groups.
      group_size: Rows of a prompt, which stand together.

    Returns:
      Numbers by the names of metrics.jsonl.
    """
    verdicts = judged.verdicts.reshape(-1, group_size)
    correct = verdicts == Verdict.CORRECT.value
    has_reward = judged.has_reward.reshape(verdicts.shape)
    rewards = judged.rewards[has_reward.reshape(-1)]
    return {
        "reward": float(rewards.mean()) if rewards.size else float("nan"),
        "correct": float(correct.mean()),
        "groups_all_correct": float((has_reward.any(-1) & (correct | ~has_reward).all(-1)).mean()),
        "groups_none_correct": float((has_reward.any(-1) & ~correct.any(-1)).mean()),
        "groups_not_judged": float((~has_reward.any(-1)).mean()),
        "length": float(judged.lengths.mean()),
        "truncated": float(judged.truncated.mean()),
        **{f"verdict/{v.value}": float((verdicts == v.value).mean()) for v in Verdict},
        **probe_shares(judged.probe),
    }
