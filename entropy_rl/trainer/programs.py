"""The compiled functions of a training step, built from the config."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from entropy_rl.advantages import Transform
from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.learner.advantage_log import Advantages, make_advantages
from entropy_rl.learner.critic import CriticPrograms, make_critic_programs
from entropy_rl.learner.optimizer import make_optimizer
from entropy_rl.learner.replay import ReplayPrograms, make_replay_programs
from entropy_rl.learner.update import StatsFn, UpdateFn, make_stats_pass, make_update
from entropy_rl.losses.build import loss_controller
from entropy_rl.losses.controller import Controller
from entropy_rl.rollout import GenerateFn, make_generate
from entropy_rl.rollout.stop_strings import stop_rule
from entropy_rl.runs.load_model import Model
from entropy_rl.types import Policy, TrainBatch


class Programs(NamedTuple):
    """The compiled functions of a step.

    Attributes:
      optimizer: The policy's.
      controller: The controller of the loss, if it has one.
      generate: Samples completions.
      explore: Samples at the temperature of `rollout.exploration`.
      stats: Log-probs and entropies of a mini-batch.
      advantages: Advantages of the first rows of a mini-batch, for samples.jsonl.
      update: The policy's update on a mini-batch.
      critic: The critic's functions.
      replay: The replay buffer's functions.
    """

    optimizer: optax.GradientTransformation
    controller: Controller | None
    generate: GenerateFn
    explore: GenerateFn | None
    stats: StatsFn
    advantages: Callable[[TrainBatch], Advantages]
    update: UpdateFn
    critic: CriticPrograms | None
    replay: ReplayPrograms | None


def make_programs(
    config: TrainConfig, model: Model, advantage: Transform, backbone: Policy | None = None
) -> Programs:
    """Build the compiled functions of a step; nothing is compiled yet.

    Args:
      config: The config.
      model: The policy, its placement and its tokenizer.
      advantage: The advantage of the config.
      backbone: The backbone of the critic, if there is one.
    """
    rollout, mesh = config.rollout, model.placement.mesh
    optimizer = make_optimizer(config.optimizer)
    # The first rows of a mini-batch are those of the first process.
    own_rows = config.batching.mini_batch_prompts * rollout.group_size // hosts.count()
    generate = functools.partial(
        make_generate,
        model.sampler,
        group_size=rollout.group_size,
        max_new_tokens=rollout.max_new_tokens,
        eos_ids=model.eos_ids,
        pad_id=model.pad_id,
        top_p=rollout.top_p,
        decoding=config.decoding,
        stop=stop_rule(model.tokenizer, rollout.stop),
        constrain=model.placement.constrain_rows,
        shards=model.placement.local_shards,
    )
    hotter = rollout.exploration
    of_update = gradient_settings(config) | dict(mesh=mesh, constrain=model.placement.constrain)
    return Programs(
        optimizer=optimizer,
        controller=loss_controller(config.loss),
        generate=generate(
            temperature=rollout.temperature, greedy="greedy_rewards" in advantage.requires
        ),
        explore=None if hotter is None else generate(temperature=hotter.temperature),
        stats=jax.jit(make_stats_pass(model.policy, mesh=mesh, **stats_settings(config))),
        advantages=make_advantages(advantage, min(config.run.samples_per_step, own_rows)),
        update=make_update(model.policy, advantage, optimizer, config.loss, **of_update),
        critic=None
        if backbone is None
        else make_critic_programs(config, backbone, advantage, model.placement),
        replay=make_replay_programs(
            config, model.policy, advantage, optimizer, model.placement, **of_update
        ),
    )


def stats_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of `make_stats_pass`."""
    rollout, batching = config.rollout, config.batching
    return dict(
        temperature=rollout.temperature,
        max_tokens_per_micro_batch=batching.max_tokens_per_micro_batch,
        group_size=rollout.group_size if batching.share_prompts else None,
    )


def gradient_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of `make_gradient`, beside advantage and loss."""
    return stats_settings(config) | dict(
        max_new_tokens=config.rollout.max_new_tokens, fused_loss=config.batching.fused_loss
    )
