"""Exploration of failed prompts: sample them once more, at a higher temperature.

Source: UEC-RL, https://arxiv.org/abs/2604.14646, from a summary and the code of its authors.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.experience import Experience, ScoredGroups, has_contrast
from entropy_rl.experience.plain import PlainCollector
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.experience.sampler import Sampled, Sampler, take_prompts
from entropy_rl.experience.scoring import VERDICTS
from entropy_rl.tasks.task import Verdict
from entropy_rl.types import TrainState


@dataclasses.dataclass(frozen=True)
class ExplorationCollector:
    """Replaces the groups of failed prompts by samples of a higher temperature.

    A prompt has failed if it has a judged completion, and no correct one. The metrics of the
    rollout remain those of the first samples.

    Attributes:
      collect: Samples the first group of each prompt.
      sampler: Samples the second one, at the higher temperature.
      max_new_tokens: Limit of new tokens of a completion.
    """

    collect: PlainCollector
    sampler: Sampler
    max_new_tokens: int

    def __call__(
        self, state: TrainState, batch: PromptBatch, step: int, round: int = 0
    ) -> Experience:
        """Sample and score, and once more where that failed; collective.

        The samples of round r have the indices of the rounds 2r and, at the higher temperature,
        2r + 1 of a run without exploration.

        Args:
          state: Gives the parameters of the policy.
          batch: The prompts of this process.
          step: The step, from 0.
          round: The round of the step.
        """
        first = self.collect(state, batch, step, 2 * round)
        failed = failed_prompts(first.groups)
        groups = first.groups
        if any(hosts.gather(bool(failed.any()))):
            # Every process samples: parameters are gathered from all of them. The rows of other
            # prompts end with their first token.
            limits = np.where(failed, self.max_new_tokens, 1).astype(np.int32)
            sampled, _ = self.sampler.sample(state, batch, step, 2 * round + 1, limits)
            if failed.any():
                groups = groups.replace_groups(
                    failed, self._score(batch, sampled, groups, failed, 2 * round + 1)
                )
        rows = groups.rows
        mask = exploration_loss_mask(rows["rewards"], rows["has_reward"], failed, groups.group_size)
        tried, solved = int(failed.sum()), int((failed & _any_correct(groups)).sum())
        return first._replace(
            groups=groups.with_rows(loss_row_mask=mask),
            rows=first.rows.add_ratios(
                groups_explored=(tried, len(failed)), explored_solved=(solved, tried)
            ),
            scored=first.scored + tried * groups.group_size,
        )

    def _score(
        self,
        batch: PromptBatch,
        sampled: Sampled,
        groups: ScoredGroups,
        failed: np.ndarray,
        round: int,
    ) -> ScoredGroups:
        """The second groups of the failed prompts; what is known of a prompt itself is kept."""
        found = self.sampler.score(
            batch.take(failed), take_prompts(sampled, failed), round=round
        ).groups
        before = groups.take(failed).rows
        # Without a reward of its greedy completion, no row of a group has one.
        in_groups = before["has_reward"].reshape(-1, groups.group_size)
        of_prompt = np.repeat(in_groups.any(1), groups.group_size)
        has_reward = found.rows["has_reward"] & of_prompt
        return found._replace(rows=before | found.rows | {"has_reward": has_reward})


def failed_prompts(groups: ScoredGroups) -> np.ndarray:
    """Find the prompts with a judged completion and no correct one, bool[P]."""
    judged = np.isin(
        groups.rows["verdicts"], [i for i, verdict in enumerate(VERDICTS) if verdict.is_judgement]
    )
    return judged.reshape(-1, groups.group_size).any(1) & ~_any_correct(groups)


def _any_correct(groups: ScoredGroups) -> np.ndarray:
    correct = groups.rows["verdicts"] == VERDICTS.index(Verdict.CORRECT)
    return correct.reshape(-1, groups.group_size).any(1)


def exploration_loss_mask(
    rewards: np.ndarray, has_reward: np.ndarray, explored: np.ndarray, group_size: int
) -> np.ndarray:
    """Select the rows of groups with contrast and, in explored ones, with A >= 0.

    A is the reward minus the mean reward of the group.
    Source: UEC-RL, https://arxiv.org/abs/2604.14646, from a summary.

    Args:
      rewards: f32[B].
      has_reward: bool[B].
      explored: bool[P].
      group_size: Consecutive rows of a group.

    Returns:
      bool[B].
    """
    contrast = has_contrast(rewards, has_reward, group_size)[:, None]
    rewards = rewards.reshape(-1, group_size)
    has_reward = has_reward.reshape(-1, group_size)
    mean = np.where(has_reward, rewards, 0).sum(1, keepdims=True) / np.maximum(
        has_reward.sum(1, keepdims=True), 1
    )
    return (has_reward & contrast & (~explored[:, None] | (rewards >= mean))).reshape(-1)
