"""The sampling half of a step: prompts in, judged completions out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from entropy_rl import hosts
from entropy_rl.loading import Model
from entropy_rl.metrics import Clock
from entropy_rl.prompts import PromptBatch, Prompts
from entropy_rl.rollout import GenerateFn, Stage
from entropy_rl.rounds import OF_PROMPTS, Drawn
from entropy_rl.sampling_config import RolloutConfig
from entropy_rl.scoring import Scores, score
from entropy_rl.tasks import Task
from entropy_rl.types import Rollout


class StepSampler:
    """Samples and judges for one step, with the policy as it is before it.

    Args:
      generate: The sampler.
      model: Its weights are not looked at.
      task: The judge.
      params: Training parameters.
      key: Of the step.
      clock: Of the step; it gets `rollout` and `verdicts`.
      watch: Called with a `Stage` now and then while completions are sampled.
      greedy: Whether the last row of each group that `generate` returns is the greedy one.
    """

    def __init__(
        self,
        generate: GenerateFn,
        model: Model,
        task: Task,
        params: Any,
        key: jax.Array,
        clock: Clock,
        watch: Callable[[Stage], None],
        greedy: bool = False,
    ):
        self._generate, self._model, self._task = generate, model, task
        self._params, self._key, self._clock, self._watch = params, key, clock, watch
        self._greedy = greedy

    def sample(self, prompts: PromptBatch, first_sample: int = 0) -> tuple[Rollout, Rollout | None]:
        """Completions of each prompt, from sample `first_sample` on, and its greedy one; host copies."""
        with self._clock("rollout"):
            rollout = self._generate(
                self._model.to_decode(self._params),
                *self._model.placement.put_prompts((prompts.ids, prompts.mask, prompts.index)),
                self._key,
                first_sample,
                on_chunk=self._watch,
            )
            rollout = jax.device_get(rollout)
        return split_greedy(rollout) if self._greedy else (rollout, None)

    def judge(self, prompts: PromptBatch, rollout: Rollout, greedy: Rollout | None) -> Drawn:
        """What was sampled, with its verdicts."""

        def scores_of(rollout: Rollout) -> Scores:
            rows = prompts.rows(len(rollout.completion_ids) // len(prompts.index))
            return score(self._task, self._model.tokenizer, rows, rollout)

        with self._clock("verdicts"):
            of_greedy = None if greedy is None else scores_of(greedy)
            return Drawn(prompts, rollout, scores_of(rollout), of_greedy)


def split_greedy(rollout: Rollout) -> tuple[Rollout, Rollout]:
    """Groups of G + 1 rows as the first G of each, and the last.

    Args:
      rollout: Host copies.

    Returns:
      (P*G rows, P rows).
    """
    prompts = len(rollout.prompt_ids)

    def rows(keep: slice) -> Rollout:
        cut = lambda x: x.reshape(prompts, -1, *x.shape[1:])[:, keep].reshape(-1, *x.shape[1:])  # noqa: E731
        of_rows = {name: cut(x) for name, x in vars(rollout).items() if name not in OF_PROMPTS}
        return rollout.replace(**of_rows)

    return rows(slice(-1)), rows(slice(-1, None))


def draw_round(
    sampler: StepSampler, prompts: Prompts, config: RolloutConfig, first: int, number: int
) -> Drawn:
    """A round of a step; its prompts follow those of the `first` rounds of the steps before.

    A problem that comes again in a step, in another epoch, gets other samples.
    """
    batch = prompts.step(first + number, config.prompts, hosts.index(), hosts.count())
    return sampler.judge(batch, *sampler.sample(batch, number * config.group_size))
