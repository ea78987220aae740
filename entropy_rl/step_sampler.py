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
from entropy_rl.rounds import Drawn
from entropy_rl.sampling_config import RolloutConfig
from entropy_rl.scoring import score
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
    ):
        self._generate, self._model, self._task = generate, model, task
        self._params, self._key, self._clock, self._watch = params, key, clock, watch

    def sample(self, prompts: PromptBatch, first_sample: int = 0) -> Rollout:
        """Completions of each prompt, from sample `first_sample` on; host copies."""
        with self._clock("rollout"):
            rollout = self._generate(
                self._model.to_decode(self._params),
                *self._model.placement.put_prompts((prompts.ids, prompts.mask, prompts.index)),
                self._key,
                first_sample,
                on_chunk=self._watch,
            )
            return jax.device_get(rollout)

    def judge(self, prompts: PromptBatch, rollout: Rollout) -> Drawn:
        """The rollout with its verdicts."""
        with self._clock("verdicts"):
            rows = prompts.rows(len(rollout.completion_ids) // len(prompts.index))
            return Drawn(prompts, rollout, score(self._task, self._model.tokenizer, rows, rollout))


def draw_round(
    sampler: StepSampler, prompts: Prompts, config: RolloutConfig, first: int, number: int
) -> Drawn:
    """A round of a step; its prompts follow those of the `first` rounds of the steps before.

    A problem that comes again in a step, in another epoch, gets other samples.
    """
    batch = prompts.step(first + number, config.prompts, hosts.index(), hosts.count())
    return sampler.judge(batch, sampler.sample(batch, number * config.group_size))
