"""`Sampler`: samples completions with the policy of a training state, and scores them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from entropy_rl.experience.experience import Experience, ScoredGroups
from entropy_rl.experience.metrics import scored_rows
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.experience.scoring import Scores, completion_ids, score
from entropy_rl.rewards import Rewards, RewardValues
from entropy_rl.rollout import DecodingProgress, GenerateFn
from entropy_rl.runs.load_model import Model
from entropy_rl.runs.logging import Clock
from entropy_rl.tasks import Task
from entropy_rl.types import REWARD_EXTRA, Rollout, TrainState

OF_PROMPTS = ("prompt_ids", "prompt_mask")  # the arrays [P, ...] of a rollout; others are [B, ...]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples completions with the policy of a training state, and scores them.

    Attributes:
      generate: The sampling function.
      model: Placement, tokenizer and decoding layout; its parameters are not read.
      task: The task whose `judge` gives the judgements.
      rewards: The rewards of a completion.
      key: The random key of the run.
      group_size: Completions per prompt (G).
      clock: Records the phases `rollout` and `verdicts`.
      watch: (state) -> callback that is called with the progress of the decoding.
      greedy: Whether `generate` adds a greedy completion to each group, as its last row.
    """

    generate: GenerateFn
    model: Model
    task: Task
    rewards: Rewards
    key: jax.Array
    group_size: int
    clock: Clock
    watch: Callable[[TrainState], Callable[[DecodingProgress], None]]
    greedy: bool = False

    def sample(
        self,
        state: TrainState,
        prompts: PromptBatch,
        step: int,
        round: int = 0,
        limits: np.ndarray | None = None,
    ) -> tuple[Rollout, Rollout | None]:
        """Sample a group of completions for each prompt.

        Args:
          state: Gives the parameters of the policy.
          prompts: P prompts.
          step: The step, which is folded into the key.
          round: The samples of a prompt have the indices round * G and up, which are folded into
            the key as well.
          limits: int32[P], limits of new tokens; None for that of the run.

        Returns:
          (P*G rows, P greedy rows or None), host copies.
        """
        with self.clock("rollout"):
            rollout = self.generate(
                self.model.to_decode(state.params),
                *self.model.placement.put_prompts((prompts.ids, prompts.mask, prompts.index)),
                jax.random.fold_in(self.key, step),
                round * self.group_size,
                limits=limits,
                on_chunk=self.watch(state),
            )
            rollout = jax.device_get(rollout)
        return split_greedy(rollout) if self.greedy else (rollout, None)

    def score(
        self,
        prompts: PromptBatch,
        rollout: Rollout,
        greedy: Rollout | None = None,
        round: int = 0,
    ) -> Experience:
        """Score completions.

        With greedy completions, a row has a reward only if the greedy one of its group has one too.

        Args:
          prompts: P prompts.
          rollout: Their P*G rows.
          greedy: Their P greedy rows.
          round: As passed to `sample`.
        """
        scores, values = self._score(prompts, rollout)
        rows = scored_rows(rollout, scores, values)
        scored = len(scores.verdicts)
        arrays = dict(rewards=values.total, has_reward=values.has_reward, verdicts=rows.verdicts)
        if values.by_label:
            arrays["extras"] = {
                f"{REWARD_EXTRA}{label}": x[:, None] for label, x in values.by_label.items()
            }
        if greedy is not None:
            _, of_greedy = self._score(prompts, greedy)
            found = of_greedy.total[of_greedy.has_reward]
            rows = rows.add_ratios(greedy_reward=(sum(found.tolist()), len(found)))
            scored += len(of_greedy.total)
            arrays["greedy_rewards"] = np.repeat(of_greedy.total, self.group_size)
            has_greedy = np.repeat(of_greedy.has_reward, self.group_size)
            arrays["has_reward"] = values.has_reward & has_greedy
        first = np.full(len(prompts.index), round * self.group_size, np.int32)
        return Experience(ScoredGroups(rollout, prompts.index, first, arrays), rows, scored)

    def _score(self, prompts: PromptBatch, rollout: Rollout) -> tuple[Scores, RewardValues]:
        with self.clock("verdicts"):
            problems = prompts.rows(len(rollout.completion_ids) // len(prompts.index))
            scores = score(self.task, self.model.tokenizer, problems, rollout)
            ids = completion_ids(rollout)
            return scores, self.rewards(scores.texts, problems, scores.judgements, ids)


def split_greedy(rollout: Rollout) -> tuple[Rollout, Rollout]:
    """Split groups of G + 1 rows into the first G rows of each, and the last.

    Args:
      rollout: Host copies.

    Returns:
      (P*G rows, P rows).
    """
    prompts = len(rollout.prompt_ids)
    greedy = np.zeros((prompts, len(rollout.completion_ids) // prompts), bool)
    greedy[:, -1] = True
    return _rows(rollout, ~greedy.reshape(-1)), _rows(rollout, greedy.reshape(-1))


def take_prompts(rollout: Rollout, keep: np.ndarray) -> Rollout:
    """Select the groups of some prompts, bool[P]; host copies."""
    rows = np.repeat(keep, len(rollout.completion_ids) // len(keep))
    prompts = {name: getattr(rollout, name)[keep] for name in OF_PROMPTS}
    return _rows(rollout, rows).replace(**prompts)


def _rows(rollout: Rollout, keep: np.ndarray) -> Rollout:
    return rollout.replace(**{n: x[keep] for n, x in vars(rollout).items() if n not in OF_PROMPTS})
