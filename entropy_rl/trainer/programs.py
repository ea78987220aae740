"""The compiled functions of a training step, built from the config."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from entropy_rl.advantages import Transform
from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed import multihost as hosts
from entropy_rl.distributed.sharding import Placement, row_shards
from entropy_rl.learner.advantage_log import Advantages, make_advantages
from entropy_rl.learner.critic import CriticPrograms, make_critic_programs
from entropy_rl.learner.distillation import Teacher
from entropy_rl.learner.micro_batches import make_micro_batch_fill
from entropy_rl.learner.optimizer import Optimizer, critic_optimizer, make_optimizer
from entropy_rl.learner.pass_settings import PassSettings, shares_prompts
from entropy_rl.learner.replay import (
    BufferShape,
    ReplayPrograms,
    make_replay_programs,
)
from entropy_rl.learner.replay_rule import build_replay
from entropy_rl.learner.rollout_advantages import RolloutAdvantagesFn, make_rollout_advantages
from entropy_rl.learner.stats_pass import StatsFn, make_stats_pass
from entropy_rl.learner.token_loss import fuses_loss
from entropy_rl.learner.update import UpdateFn, make_update
from entropy_rl.losses.loss import Loss
from entropy_rl.models.lora import OnFrozen, on_base
from entropy_rl.rollout import GenerateFn, make_generate
from entropy_rl.rollout.stop_strings import stop_rule
from entropy_rl.runs.load_model import Model
from entropy_rl.types import Params, Policy, TrainBatch


class Programs(NamedTuple):
    """The compiled functions of a step.

    Attributes:
      optimizer: The policy's.
      generate: Samples completions.
      explore: Samples at the temperature of `rollout.exploration`.
      stats: Log-probs and entropies of a mini-batch.
      micro_batch_fill: The fraction of useful tokens of updates, of their mini-batches.
      rollout_advantages: Advantages over all mini-batches of a rollout; None if the advantage does
        not read the whole rollout.
      advantages: Advantages of the first rows of a mini-batch, for samples.jsonl.
      update: The policy's update on a mini-batch.
      critic: The critic's functions.
      replay: The replay buffer's functions.
    """

    optimizer: Optimizer
    generate: GenerateFn
    explore: GenerateFn | None
    stats: StatsFn
    micro_batch_fill: Callable[[Sequence[TrainBatch]], float]
    rollout_advantages: RolloutAdvantagesFn | None
    advantages: Callable[[TrainBatch], Advantages]
    update: UpdateFn
    critic: CriticPrograms | None
    replay: ReplayPrograms | None


def make_programs(
    config: TrainConfig,
    model: Model,
    advantage: Transform,
    loss: Loss,
    backbone: Policy | None = None,
    max_turn_tokens: int | None = None,
    teacher: Teacher | None = None,
) -> Programs:
    """Build the compiled functions of a step; nothing is compiled yet.

    Args:
      config: The config.
      model: The policy, its placement and its tokenizer.
      advantage: The advantage of the config.
      loss: The loss of the config.
      backbone: The backbone of the critic, if there is one.
      max_turn_tokens: As in `make_generate`.
      teacher: The teacher of a run with `teacher.top_k`.
    """
    optimizer = make_optimizer(config.optimizer, config.total_updates())
    settings = pass_settings(config, model.placement)
    # The first rows of a mini-batch are those of the first process.
    own_rows = config.batching.mini_batch_prompts * config.rollout.group_size // hosts.count()
    sampler = functools.partial(make_sampler, config, model, max_turn_tokens=max_turn_tokens)
    hotter = config.rollout.exploration
    replay = build_replay(config.replay, config.rollout.group_size)

    def make(policy: Policy, teacher: Teacher | None = None) -> UpdateFn:
        return make_update(policy, advantage, optimizer, loss, settings, teacher)

    def make_with_teacher(frozen: tuple[Params, Params]) -> UpdateFn:
        of_base, of_teacher = frozen
        policy = model.policy if model.base is None else model.base.bind(model.policy, of_base)
        return make(policy, teacher._replace(params=of_teacher))

    if teacher is None:
        update = on_base(make, model.policy, model.base, (0,))
    else:
        frozen = (None if model.base is None else model.base.params), teacher.params
        update = OnFrozen(make_with_teacher, frozen, (0,))

    return Programs(
        optimizer=optimizer,
        generate=sampler("greedy_rewards" in advantage.requires),
        explore=None if hotter is None else sampler(temperature=hotter.temperature),
        stats=jax.jit(make_stats_pass(model.policy, settings)),
        micro_batch_fill=make_micro_batch_fill(model.policy, settings),
        rollout_advantages=make_rollout_advantages(advantage, settings.mesh),
        advantages=make_advantages(advantage, min(config.run.samples_per_step, own_rows)),
        update=update,
        critic=None
        if backbone is None
        else make_critic_programs(
            backbone,
            advantage,
            critic_optimizer(config.optimizer, config.critic, config.total_updates(critic=True)),
            config.critic,
            loss,
            critic_pass_settings(config, model.placement),
            model.base if config.critic.path is None else None,
        ),
        replay=None
        if replay is None
        else make_replay_programs(
            replay,
            model.policy,
            advantage,
            optimizer,
            loss,
            settings,
            _buffer_shape(config, replay.rollouts),
            model.base,
        ),
    )


def pass_settings(config: TrainConfig, placement: Placement | None = None) -> PassSettings:
    """The settings of the policy's passes over a mini-batch.

    Args:
      config: The config.
      placement: Where arrays are sharded; None for one device.
    """
    rollout, batching = config.rollout, config.batching
    mesh = None if placement is None else placement.mesh
    shares = shares_prompts(
        batching.mini_batch_prompts,
        rollout.group_size,
        rollout.max_prompt_tokens,
        rollout.max_new_tokens,
        row_shards(mesh),
    )
    return PassSettings(
        temperature=rollout.temperature,
        max_tokens_per_micro_batch=batching.max_tokens_per_micro_batch,
        group_size=rollout.group_size if shares else None,
        mesh=mesh,
        constrain=None if placement is None else placement.constrain,
    )


def critic_pass_settings(config: TrainConfig, placement: Placement | None = None) -> PassSettings:
    """The settings of the critic's passes over a mini-batch; arguments as in `pass_settings`."""
    settings, tokens = pass_settings(config, placement), config.critic.max_tokens_per_micro_batch
    if tokens is None:
        return settings
    return dataclasses.replace(settings, max_tokens_per_micro_batch=tokens)


def describe_update(config: TrainConfig, model: Model, advantage: Transform, loss: Loss) -> str:
    """Describe in one line, for the log, what the program decided about the passes of an update."""
    shares = pass_settings(config, model.placement).group_size is not None
    prompts = "once per group" if shares else "with each completion"
    vocab_size = jax.eval_shape(model.policy.head, model.params).shape[0]
    fused = (
        "in the loop of the LM head"
        if fuses_loss(advantage, loss, vocab_size)
        else "after the LM head"
    )
    return f"update: prompts are computed {prompts}, the loss {fused}"


def make_sampler(
    config: TrainConfig,
    model: Model,
    greedy: bool = False,
    temperature: float | None = None,
    **settings: int | None,
) -> GenerateFn:
    """Build the sampler of a run.

    Args:
      config: The config.
      model: The policy, its placement and its tokenizer.
      greedy: Whether each group has a greedy completion.
      temperature: None for that of `rollout`.
      **settings: `max_turn_tokens` and `adapters` of `make_generate`.
    """
    rollout = config.rollout
    return make_generate(
        model.sampler,
        group_size=rollout.group_size,
        max_new_tokens=rollout.max_new_tokens,
        eos_ids=model.eos_ids,
        pad_id=model.pad_id,
        temperature=rollout.temperature if temperature is None else temperature,
        top_p=rollout.top_p,
        greedy=greedy,
        decoding=config.decoding,
        stop=stop_rule(model.tokenizer, rollout.stop),
        constrain=model.placement.constrain_rows,
        shards=model.placement.local_shards,
        **settings,
    )


def _buffer_shape(config: TrainConfig, rollouts: int) -> BufferShape:
    """The size of a replay buffer with a capacity of some rollouts."""
    rollout = config.rollout
    return BufferShape(
        updates=rollouts * config.updates_per_step,
        rows=config.batching.mini_batch_prompts * rollout.group_size,
        prompt_tokens=rollout.max_prompt_tokens,
        new_tokens=rollout.max_new_tokens,
    )
