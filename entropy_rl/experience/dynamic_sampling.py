"""Dynamic sampling: drop groups without contrast, and sample further prompts in their place.

A round samples the next `rollout.prompts` prompts. Rounds are repeated until enough groups have
rewards that differ; the step trains on the first of these, in the order of the prompts, and drops
the surplus of the last round. Source: DAPO, https://arxiv.org/abs/2503.14476, §3.2, and veRL's code
of it, where the reward is the accuracy. Here it is what the run is trained on, the weighted sum of
`rewards:` or the reward of the verdict; a penalty that belongs to the advantage has no influence.

The choice depends on the rewards of all processes, and is the same in each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from entropy_rl.config.rollout import DynamicSamplingConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.experience import Experience, ScoredGroups, concatenate, has_contrast
from entropy_rl.experience.metrics import pool_rows
from entropy_rl.experience.prompts import PromptBatch, own_places
from entropy_rl.types import TrainState


@dataclasses.dataclass(frozen=True)
class DynamicSamplingCollector:
    """Collects rounds until enough groups have contrast.

    Attributes:
      collect: Collects a round.
      prompts: (round of the run) -> the prompts of this process.
      config: Limits.
      wanted: Groups of a step, over all processes.
      updates: Mini-batches of a step.
    """

    collect: Callable[[TrainState, PromptBatch, int, int], Experience]
    prompts: Callable[[int], PromptBatch]
    config: DynamicSamplingConfig
    wanted: int
    updates: int

    def __call__(self, state: TrainState, batch: PromptBatch, step: int) -> Experience:
        """Sample and score rounds, and choose their groups; collective.

        If there are too few groups with contrast and that is no error, others fill the step, and
        their rows have no reward.

        Args:
          state: Gives the parameters of the policy and, in `rounds`, the rounds of the steps
            before.
          batch: The prompts of the first round.
          step: The step, from 0.

        Raises:
          ValueError: If there are too few groups with contrast after the last round, and
            `at_limit` is "error".
        """
        first, rounds, contrast, found = int(state.rounds), [], [], 0
        while found < self.wanted and len(rounds) < self.config.max_rounds:
            if rounds:
                batch = self.prompts(first + len(rounds))
            rounds.append(self.collect(state, batch, step, len(rounds)))
            groups = rounds[-1].groups
            contrast.append(
                has_contrast(groups.rows["rewards"], groups.rows["has_reward"], groups.group_size)
            )
            found += sum(hosts.gather(int(contrast[-1].sum())))
        if found < self.wanted and self.config.at_limit == "error":
            raise ValueError(
                f"rollout.dynamic_sampling.max_rounds: must be larger, got {len(rounds)}: in these "
                f"rounds of {self.wanted} prompts, only {found} groups have rewards that differ; "
                "the same command with a larger number resumes the run"
            )
        rows = pool_rows(experience.rows for experience in rounds)
        kept = np.concatenate(contrast)
        totals = {"prompts_sampled": len(kept), "tokens_sampled": int(rows.lengths.sum())}
        rows = rows._replace(totals=rows.totals | totals)
        return Experience(
            groups=self._choose(
                concatenate([experience.groups for experience in rounds]), np.stack(contrast)
            ),
            rows=rows.add_ratios(groups_dropped=(int((~kept).sum()), len(kept))),
            scored=sum(experience.scored for experience in rounds),
            rounds=len(rounds),
        )

    def _choose(self, groups: ScoredGroups, contrast: np.ndarray) -> ScoredGroups:
        """The groups that this process trains on, of all rounds and processes.

        Args:
          groups: Those that this process sampled, round after round.
          contrast: bool[rounds, P], which of them have contrast.
        """
        everywhere = np.array(hosts.gather(contrast.tolist()), bool)
        host, number, is_kept = choose(everywhere, self.wanted)
        own = own_places(self.wanted, hosts.index(), hosts.count(), self.updates)
        taken = exchange(groups, host, number, own)
        has_reward = taken.rows["has_reward"] & np.repeat(is_kept[own], taken.group_size)
        return taken.with_rows(has_reward=has_reward)


def choose(has_contrast: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the groups of a step: the first with contrast in the order of the prompts, then the
    first without.

    Args:
      has_contrast: bool[hosts, rounds, P]. A process has a contiguous part of the prompts of a
        round.
      wanted: M, the number of groups.

    Returns:
      (host int[M], number int[M], has_contrast bool[M]): the process that sampled each group, and
      the group's index among those of that process, round after round.
    """
    in_order = has_contrast.transpose(1, 0, 2)
    taken = np.argsort(~in_order.reshape(-1), stable=True)[:wanted]
    round_, host, place = np.unravel_index(taken, in_order.shape)
    return host, round_ * in_order.shape[2] + place, in_order.reshape(-1)[taken]


def exchange(
    groups: ScoredGroups, host: np.ndarray, number: np.ndarray, own: Sequence[int]
) -> ScoredGroups:
    """Exchange groups between the processes; collective.

    Args:
      groups: The groups that this process sampled.
      host: int[M], the process that sampled each chosen group.
      number: int[M], the group's index among those of that process.
      own: Which of the M groups this process trains on.
    """
    of_host = [number[host == h] for h in range(hosts.count())]
    most = max(len(numbers) for numbers in of_host)
    # Arrays that are gathered have the same shape in every process.
    sent = np.pad(of_host[hosts.index()], (0, most - len(of_host[hosts.index()])))
    everything = hosts.concatenate(groups.take(sent))
    rank = [np.sum(host[:k] == h) for k, h in enumerate(host)]
    return everything.take((host * most + np.array(rank))[list(own)])
