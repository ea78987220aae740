"""`Collector`: a function from the training state and prompts to the `Experience` of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from entropy_rl.config.rollout import RolloutConfig
from entropy_rl.experience.dynamic_sampling import DynamicSamplingCollector
from entropy_rl.experience.experience import Experience
from entropy_rl.experience.exploration import ExplorationCollector
from entropy_rl.experience.plain import PlainCollector
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.experience.sampler import Sampler
from entropy_rl.rollout import GenerateFn
from entropy_rl.types import Rollout, TrainBatch, TrainState


class Collector(Protocol):
    """Samples and scores the completions of a step.

    The result must be a function of the state, the prompts and the step alone: random keys are
    folded from the seed, the step, the problem and the sample, so that a resumed run repeats it.
    """

    def __call__(self, state: TrainState, batch: PromptBatch, step: int) -> Experience:
        """Collect the experience of a step; every process calls it.

        Args:
          state: The training state before the step.
          batch: The prompts of this process.
          step: The step, from 0.
        """


def make_collector(
    config: RolloutConfig,
    sampler: Sampler,
    explore: GenerateFn | None,
    prompts: Callable[[int], PromptBatch],
    updates: int,
    on_sampled: Callable[[TrainState, Rollout], list[TrainBatch]],
) -> Collector:
    """Build the collector of a config.

    Args:
      config: The `rollout` section.
      sampler: Samples and scores.
      explore: The sampling function of `config.exploration`.
      prompts: (round of the run) -> the prompts of this process.
      updates: Mini-batches of a step.
      on_sampled: As in `PlainCollector`; called if all that is sampled is trained on.
    """
    explores, is_dynamic = config.exploration is not None, config.dynamic_sampling is not None
    collect = PlainCollector(sampler, None if explores or is_dynamic else on_sampled)
    if explores:
        hotter = dataclasses.replace(sampler, generate=explore, greedy=False)
        collect = ExplorationCollector(collect, hotter, config.max_new_tokens)
    if is_dynamic:
        collect = DynamicSamplingCollector(
            collect, prompts, config.dynamic_sampling, config.prompts, updates
        )
    return collect
