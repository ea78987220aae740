"""The functions of a training step, built once per run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from entropy_rl.advantages.transform import OTHER_PROMPT, named_sources
from entropy_rl.experience.collect import Collector, make_collector
from entropy_rl.experience.prompts import PromptBatch
from entropy_rl.experience.sampler import Sampler
from entropy_rl.trainer.prepare import Prepare
from entropy_rl.trainer.training_run import TrainingRun
from entropy_rl.trainer.updates import Update
from entropy_rl.types import TrainState


class Stages(NamedTuple):
    """The functions of a step.

    Attributes:
      prompts: (state, step) -> the prompts of this process.
      collect: (state, prompts, step) -> experience.
      prepare: (state, experience) -> data, the mini-batches.
      update: (state, data) -> (state, metrics).
    """

    prompts: Callable[[TrainState, int], PromptBatch]
    collect: Collector
    prepare: Prepare
    update: Update


def make_stages(run: TrainingRun) -> Stages:
    """Build the functions of a step for a run."""
    setup, config = run.setup, run.setup.config
    sampler = Sampler(
        generate=setup.programs.generate,
        model=setup.model,
        task=setup.task,
        rewards=setup.rewards,
        key=jax.random.key(config.seed),
        group_size=config.rollout.group_size,
        clock=run.clock,
        watch=run.on_disk.rollout_watch,
        greedy="greedy_rewards" in setup.advantage.requires,
        sources=named_sources(setup.advantage),
    )
    prepare = Prepare(
        programs=setup.programs,
        model=setup.model,
        updates=config.updates_per_step,
        old_log_probs=config.old_log_probs,
        mask_truncated=config.loss.mask_truncated,
        has_curriculum=setup.planned is not None,
        other_prompt=OTHER_PROMPT in setup.advantage.requires,
        teacher=setup.teacher,
    )
    collect = make_collector(
        config.rollout,
        sampler,
        setup.programs.explore,
        setup.prompts_of_round,
        config.updates_per_step,
        on_sampled=prepare.dispatch,
    )
    update = Update(
        programs=setup.programs,
        nonfinite_updates=setup.nonfinite_updates,
        clock=run.clock,
        critic_warmup_steps=0 if config.critic is None else config.critic.warmup_steps,
        offload=config.optimizer.offload,
        old_log_probs=config.old_log_probs,
        observe=None if setup.planned is None else setup.observe,
    )
    return Stages(setup.next_prompts, collect, prepare, update)
