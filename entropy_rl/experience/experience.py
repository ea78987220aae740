"""`Experience`: the scored groups of a step, as every collector returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from entropy_rl.experience.metrics import ScoredRows
from entropy_rl.types import Rollout, TrainBatch


class ScoredGroups(NamedTuple):
    """Groups of scored completions on the host: P prompts with G rows each, B = P * G.

    Attributes:
      rollout: Prompts, completions and what the sampler recorded; numpy arrays.
      prompt_index: int32[P], the ids of the problems.
      first_sample: int32[P], the sample index of a group's first row.
      rows: Arrays [B, ...] by name: `rewards` f32[B], `has_reward` bool[B], `verdicts` int32[B]
        (indices into `VERDICTS`), and optional per-row or per-token arrays. Whatever is a field of
        `TrainBatch` is passed on to the update under its name.
    """

    rollout: Rollout
    prompt_index: np.ndarray
    first_sample: np.ndarray
    rows: dict[str, np.ndarray]

    @property
    def group_size(self) -> int:
        """G, the number of rows of a group."""
        return len(self.rollout.completion_ids) // len(self.prompt_index)

    def take(self, groups: np.ndarray) -> ScoredGroups:
        """Select groups.

        Args:
          groups: bool[P], or int[M] indices.
        """
        prompts = len(self.prompt_index)

        def take(x: np.ndarray) -> np.ndarray:  # [P, ...] or [B, ...]
            in_groups = x.reshape(prompts, len(x) // prompts, *x.shape[1:])
            return in_groups[groups].reshape(-1, *x.shape[1:])

        return jax.tree.map(take, self)

    def replace_groups(self, where: np.ndarray, others: ScoredGroups) -> ScoredGroups:
        """Replace the groups at `where`, bool[P], by `others`, in their order."""
        index = np.arange(len(where))
        index[where] = len(where) + np.arange(where.sum())
        return concatenate([self, others]).take(index)

    def with_rows(self, **rows: np.ndarray) -> ScoredGroups:
        """Set arrays of `rows`."""
        return self._replace(rows=self.rows | rows)


def concatenate(parts: Sequence[ScoredGroups]) -> ScoredGroups:
    """Concatenate groups of the same size, whose `rows` have the same names."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


class Experience(NamedTuple):
    """What a step sampled: the groups that it trains on, and what its metrics need.

    Attributes:
      groups: The groups of this process that the step trains on, one mini-batch after the other.
      rows: All rows that this process sampled, for the metrics.
      scored: Completions that this process scored.
      rounds: Rounds of sampling.
      batches: The mini-batches without rewards, if their log-probs were dispatched while the
        completions were scored.
    """

    groups: ScoredGroups
    rows: ScoredRows
    scored: int
    rounds: int = 1
    batches: list[TrainBatch] | None = None


def has_contrast(rewards: np.ndarray, has_reward: np.ndarray, group_size: int) -> np.ndarray:
    """Find the groups whose rewards differ.

    Args:
      rewards: f32[B].
      has_reward: bool[B]. A group with fewer than two rewards has no contrast.
      group_size: Consecutive rows of a group.

    Returns:
      bool[P].
    """
    rewards, has_reward = rewards.reshape(-1, group_size), has_reward.reshape(-1, group_size)
    largest = np.max(np.where(has_reward, rewards, -np.inf), axis=1)
    return largest > np.min(np.where(has_reward, rewards, np.inf), axis=1)
