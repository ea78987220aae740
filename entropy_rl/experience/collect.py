"""The sampling half of a step: prompts in, judged completions out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from entropy_rl.config.rollout import RolloutConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.dynamic_sampling import OF_PROMPTS, ScoredGroups
from entropy_rl.experience.prompts import PromptBatch, Prompts
from entropy_rl.experience.scoring import Scores, score
from entropy_rl.rollout import DecodingProgress, GenerateFn
from entropy_rl.runs.load_model import Model
from entropy_rl.runs.logging import Clock
from entropy_rl.tasks import Task, Verdict
from entropy_rl.tasks.task import JudgeError
from entropy_rl.types import Rollout


class StepSampler:
    """Samples and judges for one step, with the policy as it is before it.

    Args:
      max_new_tokens: Limit of a completion.
      generate: The sampler.
      explore: That of failed prompts; None for none.
      model: Its weights are not looked at.
      task: The judge.
      params: Training parameters.
      key: Of the step.
      clock: Of the step; it gets `rollout` and `verdicts`.
      watch: Called with a `DecodingProgress` now and then while completions are sampled.
      greedy: Whether the last row of each group that `generate` returns is the greedy one.
    """

    def __init__(
        self,
        max_new_tokens: int,
        generate: GenerateFn,
        explore: GenerateFn | None,
        model: Model,
        task: Task,
        params: Any,
        key: jax.Array,
        clock: Clock,
        watch: Callable[[DecodingProgress], None],
        greedy: bool = False,
    ):
        self._max_new_tokens, self._generate, self._explore = max_new_tokens, generate, explore
        self._model, self._task = model, task
        self._params, self._key, self._clock, self._watch = params, key, clock, watch
        self._greedy = greedy

    def sample(self, prompts: PromptBatch, first_sample: int = 0) -> tuple[Rollout, Rollout | None]:
        """Completions of each prompt, from sample `first_sample` on, and its greedy one; host
        copies.
        """
        rollout = self._run(self._generate, prompts, first_sample)
        return split_greedy(rollout) if self._greedy else (rollout, None)

    def judge(
        self, prompts: PromptBatch, rollout: Rollout, greedy: Rollout | None = None, number: int = 0
    ) -> ScoredGroups:
        """What was sampled in a round, with its verdicts, and after the exploration of what failed.

        Raises:
          JudgeError: If every check crashed, on all processes: that is no accident, and nothing is
            learned.
        """
        scores = self._scores(prompts, rollout)
        if all(hosts.gather(all(verdict is Verdict.CRASH for verdict in scores.verdicts))):
            raise JudgeError(
                f"none of {len(scores.verdicts)} completions was judged: every check crashed"
            )
        of_greedy = None if greedy is None else self._scores(prompts, greedy)
        numbers = np.full(len(prompts.index), number, np.int32)
        drawn = ScoredGroups(prompts, rollout, scores, numbers, of_greedy)
        return drawn if self._explore is None else self._explored(drawn)

    def _explored(self, drawn: ScoredGroups) -> ScoredGroups:
        """With completions of a higher temperature in place of those of prompts that have failed.

        A prompt has failed if something was judged and nothing correct. The further samples have
        the numbers behind those of the round.
        """
        group_size = drawn.group_size
        has_reward, correct = (
            x.reshape(-1, group_size).any(1)
            for x in (drawn.scores.has_reward, drawn.scores.correct)
        )
        failed = has_reward & ~correct
        if not any(hosts.gather(bool(failed.any()))):
            return drawn._replace(explored=failed)
        # The other rows end with their first token.
        limits = np.where(failed, self._max_new_tokens, 1).astype(np.int32)
        number = int(drawn.round[0]) + 1
        rollout = self._run(self._explore, drawn.prompts, number * group_size, limits)
        if (
            not failed.any()
        ):  # all take part, as the parameters of the sampler come from all processes
            return drawn._replace(explored=failed)
        found, rows = take_groups_of(rollout, failed), np.repeat(failed, group_size)
        scores = self._scores(drawn.prompts.take(failed), found)
        return drawn._replace(
            rollout=merge_rows(drawn.rollout, found, rows),
            scores=merge_scores(drawn.scores, scores, rows),
            round=np.where(failed, number, drawn.round).astype(np.int32),
            explored=failed,
            failed=(drawn.rollout, drawn.scores),
        )

    def _run(
        self,
        generate: GenerateFn,
        prompts: PromptBatch,
        first_sample: int,
        limits: np.ndarray | None = None,
    ) -> Rollout:
        with self._clock("rollout"):
            rollout = generate(
                self._model.to_decode(self._params),
                *self._model.placement.put_prompts((prompts.ids, prompts.mask, prompts.index)),
                self._key,
                first_sample,
                limits=limits,
                on_chunk=self._watch,
            )
            return jax.device_get(rollout)

    def _scores(self, prompts: PromptBatch, rollout: Rollout) -> Scores:
        with self._clock("verdicts"):
            rows = prompts.rows(len(rollout.completion_ids) // len(prompts.index))
            return score(self._task, self._model.tokenizer, rows, rollout)


def split_greedy(rollout: Rollout) -> tuple[Rollout, Rollout]:
    """Groups of G + 1 rows as the first G of each, and the last.

    Args:
      rollout: Host copies.

    Returns:
      (P*G rows, P rows).
    """
    greedy = np.zeros(
        (len(rollout.prompt_ids), len(rollout.completion_ids) // len(rollout.prompt_ids)), bool
    )
    greedy[:, -1] = True
    return _rows(rollout, ~greedy.reshape(-1)), _rows(rollout, greedy.reshape(-1))


def take_groups_of(rollout: Rollout, keep: np.ndarray) -> Rollout:
    """The groups of some prompts, bool[P]; host copies."""
    rows = np.repeat(keep, len(rollout.completion_ids) // len(keep))
    prompts = {name: getattr(rollout, name)[keep] for name in OF_PROMPTS}
    return _rows(rollout, rows).replace(**prompts)


def merge_rows(rollout: Rollout, others: Rollout, where: np.ndarray) -> Rollout:
    """With other rows in the places bool[B], in their order; host copies."""

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        merged = old.copy()
        merged[where] = new
        return merged

    of_rows = {
        n: put(x, getattr(others, n)) for n, x in vars(rollout).items() if n not in OF_PROMPTS
    }
    return rollout.replace(**of_rows)


def merge_scores(scores: Scores, others: Scores, where: np.ndarray) -> Scores:
    """The same of scores; without skill measures, which are sums over rows."""
    fields = {}
    for name in ("texts", "verdicts", "answers"):
        merged = list(getattr(scores, name))
        for row, value in zip(np.flatnonzero(where).tolist(), getattr(others, name), strict=True):
            merged[row] = value
        fields[name] = merged
    return Scores(**fields, probe={})


def _rows(rollout: Rollout, keep: np.ndarray) -> Rollout:
    return rollout.replace(**{n: x[keep] for n, x in vars(rollout).items() if n not in OF_PROMPTS})


def draw_round(
    sampler: StepSampler, prompts: Prompts, config: RolloutConfig, first: int, number: int
) -> ScoredGroups:
    """A round of a step; its prompts follow those of the `first` rounds of the steps before.

    A problem that comes again in a step, in another epoch, gets other samples.
    """
    batch = prompts.step(first + number, config.prompts, hosts.index(), hosts.count())
    # The samples of an exploration have numbers in between, which do not depend on how many rounds
    # there are.
    number *= 1 if config.exploration is None else 2
    return sampler.judge(batch, *sampler.sample(batch, number * config.group_size), number)
