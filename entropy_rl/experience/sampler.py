"""`Sampler`: samples completions with the policy of a training state, and scores them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from entropy_rl.experience.episodes import Episodes, begin_episodes, environments_of
from entropy_rl.experience.experience import Experience, ScoredGroups
from entropy_rl.experience.metrics import correct_by_source, part_means, scored_rows
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.experience.scoring import Scores, completion_ids, score
from entropy_rl.rewards import Rewards, RewardValues
from entropy_rl.rollout import DecodingProgress, GenerateFn
from entropy_rl.runs.load_model import Model
from entropy_rl.runs.logging import Clock
from entropy_rl.tasks import Task
from entropy_rl.tasks.task import Judgement
from entropy_rl.types import REWARD_EXTRA, SOURCE_EXTRA, TURN_REWARDS, Rollout, TrainState

OF_PROMPTS = ("prompt_ids", "prompt_mask")  # the arrays [P, ...] of a rollout; others are [B, ...]


class Sampled(NamedTuple):
    """Sampled completions, on the host.

    Attributes:
      rollout: The rows.
      judgements: Of the rows, where their environments have judged them; None where the task does.
      turn_rewards: f32[B, N], the rewards of turns, each at the last token; None without episodes.
    """

    rollout: Rollout
    judgements: list[Judgement] | None = None
    turn_rewards: np.ndarray | None = None


def sampled_of(rollout: Rollout, episodes: Episodes | None) -> Sampled:
    """Join the rows of a rollout, on the host, with what their environments said."""
    if episodes is None:
        return Sampled(rollout)
    columns = rollout.completion_ids.shape[1]
    return Sampled(rollout, episodes.judgements(), episodes.turn_rewards(columns))


def check_finite(where: str, rollout: Rollout, name: Callable[[int], str]) -> None:
    """Refuse sampled tokens with log-probs or entropies that are not finite.

    Args:
      where: The model, for the error.
      rollout: The samples, on the host.
      name: Names the sample of a row.

    Raises:
      FloatingPointError: There is one.
    """
    known = np.isfinite(rollout.log_probs) & np.isfinite(rollout.entropy)
    bad = np.flatnonzero((rollout.completion_mask & ~known).any(axis=1))
    if bad.size:
        raise FloatingPointError(
            f"{where}: the model's log-probs are not finite, first in {name(int(bad[0]))}; its "
            "weights may be damaged, or too large for its dtype"
        )


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
      sources: Sources of problems that the advantage tells apart.
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
    sources: Sequence[str] = ()

    def sample(
        self,
        state: TrainState,
        prompts: PromptBatch,
        step: int,
        round: int = 0,
        limits: np.ndarray | None = None,
    ) -> tuple[Sampled, Sampled | None]:
        """Sample a group of completions for each prompt.

        Args:
          state: Gives the parameters of the policy.
          prompts: P prompts.
          step: The step, which is folded into the key.
          round: The samples of a prompt have the indices round * G and up, which are folded into
            the key as well.
          limits: int32[P], limits of new tokens; None for that of the run.

        Returns:
          (P*G rows, P greedy rows or None).
        """
        key, first_sample = jax.random.fold_in(self.key, step), round * self.group_size
        problems = prompts.rows(self.group_size + self.greedy)
        episodes = begin_episodes(self.task, self.model.tokenizer, problems, first_sample, key)
        with self.clock("rollout"):
            rollout = self.generate(
                self.model.to_decode(self.model.params_with(state.params)),
                *self.model.placement.put_prompts((prompts.ids, prompts.mask, prompts.index)),
                key,
                first_sample,
                limits=limits,
                on_chunk=self.watch(state),
                **environments_of(episodes),
            )
            rollout = jax.device_get(rollout)
        sampled = sampled_of(rollout, episodes)
        return split_greedy(sampled) if self.greedy else (sampled, None)

    def score(
        self,
        prompts: PromptBatch,
        sampled: Sampled,
        greedy: Sampled | None = None,
        round: int = 0,
    ) -> Experience:
        """Score completions.

        With greedy completions, a row has a reward only if the greedy one of its group has one too.

        Args:
          prompts: P prompts.
          sampled: Their P*G rows.
          greedy: Their P greedy rows.
          round: As passed to `sample`.
        """
        scores, values = self._score(prompts, sampled)
        rollout, problems = sampled.rollout, prompts.rows(self.group_size)
        rows = scored_rows(rollout, scores, values)
        rows = rows.add_ratios(**correct_by_source(problems, scores))
        rows = rows.add_ratios(**part_means(scores))
        scored = len(scores.verdicts)
        arrays = dict(rewards=values.total, has_reward=values.has_reward, verdicts=rows.verdicts)
        extras = {f"{REWARD_EXTRA}{label}": x[:, None] for label, x in values.by_label.items()}
        for source in self.sources:
            of_source = [[problem.is_from(source)] for problem in problems]
            extras[f"{SOURCE_EXTRA}{source}"] = np.array(of_source, np.float32)
        if sampled.judgements is not None:
            weight = np.float32(self.rewards.weight_of_turns)
            extras[TURN_REWARDS] = weight * sampled.turn_rewards
            turns = sum(1 + len(observed) for observed in scores.observations)
            rows = rows.add_ratios(turns=(turns, scored))
        if extras:
            arrays["extras"] = extras
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

    def _score(self, prompts: PromptBatch, sampled: Sampled) -> tuple[Scores, RewardValues]:
        rollout = sampled.rollout
        with self.clock("verdicts"):
            problems = prompts.rows(len(rollout.completion_ids) // len(prompts.index))
            check_finite("rollout", rollout, lambda row: f"a sample of problem {problems[row].id}")
            scores = score(self.task, self.model.tokenizer, problems, rollout, sampled.judgements)
            ids = completion_ids(rollout)
            return scores, self.rewards(scores.texts, problems, scores.judgements, ids)


def split_greedy(sampled: Sampled) -> tuple[Sampled, Sampled]:
    """Split groups of G + 1 rows into the first G rows of each, and the last.

    Returns:
      (P*G rows, P rows).
    """
    rollout = sampled.rollout
    prompts = len(rollout.prompt_ids)
    greedy = np.zeros((prompts, len(rollout.completion_ids) // prompts), bool)
    greedy[:, -1] = True
    return _rows(sampled, ~greedy.reshape(-1)), _rows(sampled, greedy.reshape(-1))


def take_prompts(sampled: Sampled, keep: np.ndarray) -> Sampled:
    """Select the groups of some prompts, bool[P]."""
    rollout = sampled.rollout
    found = _rows(sampled, np.repeat(keep, len(rollout.completion_ids) // len(keep)))
    prompts = {name: getattr(rollout, name)[keep] for name in OF_PROMPTS}
    return found._replace(rollout=found.rollout.replace(**prompts))


def _rows(sampled: Sampled, keep: np.ndarray) -> Sampled:
    rows = {n: x[keep] for n, x in vars(sampled.rollout).items() if n not in OF_PROMPTS}
    rollout = sampled.rollout.replace(**rows)
    if sampled.judgements is None:
        return Sampled(rollout)
    judgements = [sampled.judgements[row] for row in np.flatnonzero(keep)]
    return Sampled(rollout, judgements, sampled.turn_rewards[keep])
