"""Reinforcement learning with verifiable rewards.

One step, in this order:
  1. prompts    the next problems of the seeded order
  2. rollout    G completions of each, sampled by the policy as it is; where the config says so, in
    several
                rounds, or once more for prompts that have failed
  3. verdicts   every completion is judged, and verdicts become rewards
  4. updates    per mini-batch: token stats -> advantage -> loss -> gradient -> optimizer; a critic,
    whose
                values are among the token stats, has its own update before; where the config says
                so, there are more updates on completions of earlier rollouts
  5. records    metrics, a few samples, now and then a checkpoint
A step is a pure function of the state, the config and the number of the step, so a run that was
killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from entropy_rl.advantages import Transform, advantage_of
from entropy_rl.cli.main import run_verb
from entropy_rl.config.checks import require
from entropy_rl.config.train import TrainConfig, check_micro_batches
from entropy_rl.distributed import multihost as hosts
from entropy_rl.distributed.sharding import check_rows, make_mesh, move
from entropy_rl.evaluation import evaluation_prompts
from entropy_rl.experience.collect import StepSampler, draw_round
from entropy_rl.experience.dynamic_sampling import (
    TrainGroups,
    all_groups,
    draw_rounds,
    recorded_rows,
    sampling_metrics,
    take_groups,
)
from entropy_rl.experience.prompts import Prompts
from entropy_rl.learner.advantage_log import Advantages, advantage_fields, make_advantages
from entropy_rl.learner.critic import CriticPrograms, init_critic, make_critic_programs
from entropy_rl.learner.optimizer import make_optimizer
from entropy_rl.learner.replay import ReplayPrograms, check_replay, make_replay_programs
from entropy_rl.learner.token_loss import check_fused_loss
from entropy_rl.learner.update import (
    StatsFn,
    UpdateFn,
    init_state,
    make_batch,
    make_stats_pass,
    make_update,
)
from entropy_rl.losses.build import loss_controller
from entropy_rl.losses.build_surrogate import build_surrogate
from entropy_rl.losses.build_token_weights import build_token_weighting
from entropy_rl.losses.controller import Controller
from entropy_rl.losses.token_weights import TokenWeighting
from entropy_rl.report import run_summary
from entropy_rl.rollout import GenerateFn, make_generate
from entropy_rl.rollout.stop_strings import stop_rule
from entropy_rl.runs.compile_log import compile_log
from entropy_rl.runs.directory import check_run, claim_run
from entropy_rl.runs.load_model import (
    Model,
    check_length,
    keep_model_files,
    load_backbone,
    load_model,
)
from entropy_rl.runs.logging import Clock, DeviceWork, check_wandb
from entropy_rl.runs.nonfinite_updates import NonfiniteUpdates
from entropy_rl.tasks import closing, load_task
from entropy_rl.trainer.run import open_run
from entropy_rl.trainer.updates import run_updates
from entropy_rl.types import Policy, Rollout, TrainBatch, TrainState

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> TrainState:
    """Trains, or goes on training, and returns the last state.

    Args:
      config: What to do. `run.directory` receives config.yaml, metrics.jsonl, samples.jsonl,
        checkpoints, evaluations and curves.

    Raises:
      ValueError: If something in the config cannot work; before any training.
      Interrupted: If the run was asked to stop; its state is saved.
    """
    # ---- Set up: whatever can be wrong is found here, and what is quick to find first ----
    directory = Path(config.run.directory)
    check_run(config)
    mesh = make_mesh(config.mesh)
    batching, group_size = config.batching, config.rollout.group_size
    dynamic = config.rollout.dynamic_sampling is not None
    check_rows(mesh, batching.mini_batch_prompts, group_size, batching.share_prompts)
    check_wandb(config.run.wandb_project)
    if config.critic is not None and 0 < config.steps <= config.critic.warmup_steps:
        log.warning("critic.warmup_steps: in all %d steps the critic learns alone", config.steps)
    advantage = advantage_of(config)
    surrogate = build_surrogate(config.loss.surrogate)
    token_weighting = build_token_weighting(config.loss.token_weights, surrogate)
    loss_controller(config.loss)
    check_replay(config, advantage)
    if batching.fused_loss:
        check_fused_loss(advantage, surrogate, token_weighting)
    _check_sampler_correction(config, token_weighting)
    task = load_task(config.task.name, config.task.args)
    problems = task.problems(config.task.train_split)
    model = load_model(config.model, mesh)
    backbone = load_backbone(config.critic.path, config.model, model) if config.critic else None
    limit = config.rollout.max_prompt_tokens
    prompts = Prompts(problems, model.tokenizer, limit, seed=config.seed)
    # Those of this process, of each update.
    updates = config.rollout.prompts // batching.mini_batch_prompts
    of_step = (config.rollout.prompts, hosts.index(), hosts.count(), updates)
    prompts.step(0, *of_step)
    longest = prompts.length + config.rollout.max_new_tokens
    check_micro_batches(config, longest)
    if config.evaluation is not None:
        test_prompts = evaluation_prompts(config.evaluation, task, model.tokenizer, limit)
        longest = max(longest, test_prompts.length + config.evaluation.max_new_tokens)
    check_length(model, longest)
    programs = make_programs(config, model, advantage, backbone and backbone.policy)
    nonfinite_updates = NonfiniteUpdates(directory, batching.max_nonfinite_updates)
    if hosts.is_first():
        claim_run(config)
        keep_model_files(model, directory)
    hosts.wait_for_all("directory")

    constrain = model.placement.constrain if mesh else None
    start = init_state(
        model.params,
        programs.optimizer,
        constrain,
        controller=programs.controller,
        several_rounds=dynamic,
    )
    if backbone is not None:
        critic = init_critic(
            backbone.params, backbone.hidden_size, programs.critic.optimizer, constrain
        )
        start = start.replace(critic=critic)
        backbone = None  # the state has a copy of its parameters
    if programs.replay is not None:
        start = start.replace(replay_buffer=programs.replay.init(prompts.length))
    if not config.loss.kl_coef:  # the starting policy is needed no more
        model = dataclasses.replace(model, params=None)
    evaluation_steps = _evaluation_steps(config)
    key = jax.random.key(config.seed)

    with closing(task), compile_log() as compiled, open_run(config, start, "step") as (run, state):
        for step in range(int(state.step), config.steps + 1):
            # ---- Evaluate ----
            if step in evaluation_steps:
                if step > 0:  # before the first step there is nothing to lose
                    run.save(state)
                run.evaluate(step, model, state.params, task, test_prompts)
            if step == config.steps:
                break

            # ---- Prompts, rollout, verdicts ----
            run.begin_step(step + 1)
            clock = Clock()
            state = _with_moments_in(config, state, "pinned_host")
            sampler = StepSampler(
                config.rollout.max_new_tokens,
                programs.generate,
                programs.explore,
                model,
                task,
                state.params,
                jax.random.fold_in(key, step),
                clock,
                run.rollout_watch(state),
                "greedy_rewards" in advantage.requires,
            )
            if dynamic:
                draw = functools.partial(
                    draw_round, sampler, prompts, config.rollout, int(state.rounds)
                )
                rounds = draw_rounds(draw, config)
                trained = take_groups(rounds, config, updates)
                state = state.replace(rounds=state.rounds + len(rounds))
                data = _train_batches(config, programs, state, model, trained.rollout, updates)
            elif programs.explore is not None:  # what is trained on is known after the verdicts
                batch = prompts.step(step, *of_step)
                rounds = [sampler.judge(batch, *sampler.sample(batch))]
                trained = all_groups(rounds[0], config.reward)
                data = _train_batches(config, programs, state, model, trained.rollout, updates)
            else:
                batch = prompts.step(step, *of_step)
                rollout, greedy = sampler.sample(batch)
                data = _train_batches(config, programs, state, model, rollout, updates)
                # Its log-probs and values, while the host judges.
                work = DeviceWork(functools.partial(jax.block_until_ready, data))
                rounds = [sampler.judge(batch, rollout, greedy)]
                clock.add("waiting_for_verdicts", work.waited())
                trained = all_groups(rounds[0], config.reward)

            # ---- Updates ----
            with clock("updates"):
                state = _with_moments_in(config, state, "device")
                data = _judged(model, data, trained)
                only_critic = config.critic is not None and step < config.critic.warmup_steps
                state, update_metrics = run_updates(
                    programs.update,
                    programs.critic,
                    programs.replay,
                    state,
                    data,
                    nonfinite_updates,
                    only_critic,
                )
                state = state.replace(step=state.step + 1)

            # ---- Records ----
            metrics, tokens = sampling_metrics(rounds, config)
            metrics |= _measured(config, update_metrics) | clock.metrics(tokens=tokens)
            metrics |= _verdict_speed(metrics, sum(drawn.judged for drawn in rounds))
            run.records.metrics(step + 1, metrics)
            rows = recorded_rows(
                trained, task, model.tokenizer, prompts, config.run.samples_per_step
            )
            if rows:
                fields = advantage_fields(hosts.fetch(programs.advantages(data[0])), len(rows))
                rows = [row | more for row, more in zip(rows, fields, strict=True)]
            run.records.samples({"step": step + 1} | row for row in rows)
            compiled.report(run.progress.say)
            run.progress.show(step + 1, _note(metrics))
            run.end_step(step + 1, state)
    if hosts.is_first():
        print(run_summary(directory, config.steps))
    return state


class Programs(NamedTuple):
    """The compiled parts of a step."""

    optimizer: optax.GradientTransformation
    controller: Controller | None  # of the loss
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
    """Builds what a step runs on the device; `backbone` is that of the critic, if there is one."""
    rollout, mesh = config.rollout, model.placement.mesh
    optimizer = make_optimizer(config.optimizer)
    # Rows of this process in a mini-batch: those of the first process stand first.
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


def _check_sampler_correction(config: TrainConfig, token_weighting: TokenWeighting | None) -> None:
    """Checks that a weight against the sampler has something to compare, and the right thing."""
    names = [spec["name"] for spec in config.loss.token_weights]
    require(
        token_weighting is None
        or not token_weighting.corrects_sampler
        or (config.old_log_probs == "trainer" and config.rollout.top_p == 1),
        "loss.token_weights",
        names,
        "weights against the sampler with old_log_probs: trainer and rollout.top_p: 1; else 1 or "
        "wrong",
    )
    require(
        config.rollout.exploration is None or "geometric_rejection" not in names,
        "loss.token_weights",
        names,
        "others with rollout.exploration: it would reject all rows of another temperature",
    )


def stats_settings(config: TrainConfig) -> dict[str, Any]:
    """What a config says to `make_stats_pass`."""
    rollout, batching = config.rollout, config.batching
    return dict(
        temperature=rollout.temperature,
        max_tokens_per_micro_batch=batching.max_tokens_per_micro_batch,
        group_size=rollout.group_size if batching.share_prompts else None,
    )


def gradient_settings(config: TrainConfig) -> dict[str, Any]:
    """What a config says to `make_gradient`, beside advantage and loss."""
    return stats_settings(config) | dict(
        max_new_tokens=config.rollout.max_new_tokens, fused_loss=config.batching.fused_loss
    )


def _with_moments_in(config: TrainConfig, state: TrainState, controller: str) -> TrainState:
    if not config.optimizer.offload:
        return state
    state = state.replace(opt_state=move(state.opt_state, controller))
    if state.critic is None:
        return state
    return state.replace(
        critic=state.critic.replace(opt_state=move(state.critic.opt_state, controller))
    )


def _train_batches(
    config: TrainConfig,
    programs: Programs,
    state: TrainState,
    model: Model,
    rollout: Rollout,
    updates: int,
) -> list[TrainBatch]:
    """The rollout as the mini-batches of the updates, not yet judged, with the log-probs and the
    values that the losses need.

    These are still being computed when it returns.
    """
    batches = []
    for part in _split(rollout, updates):
        rows = len(part.completion_ids)
        batch = make_batch(
            part,
            np.zeros(rows, np.float32),
            np.zeros(rows, bool),
            pad_id=model.pad_id,
            mask_truncated=config.loss.mask_truncated,
        )
        batch = model.placement.put_rows(batch)
        if config.old_log_probs == "trainer":
            log_probs, entropy = programs.stats(state.params, batch)
            batch = batch.replace(old_log_probs=log_probs, old_entropy=entropy)
        if config.loss.kl_coef:
            batch = batch.replace(ref_log_probs=programs.stats(model.params, batch)[0])
        if programs.critic is not None:
            batch = batch.replace(values=programs.critic.values(state.critic.params, batch))
        batches.append(batch)
    return batches


def _split(rows: Any, parts: int) -> list[Any]:
    """A nest of host arrays in equal parts along the first axis, in order."""
    cut = lambda i: lambda x: x[i * len(x) // parts : (i + 1) * len(x) // parts]  # noqa: E731
    return [jax.tree.map(cut(i), rows) for i in range(parts)]


def _judged(model: Model, data: list[TrainBatch], trained: TrainGroups) -> list[TrainBatch]:
    """The mini-batches with their rewards."""
    names = ("rewards", "has_reward", "greedy_rewards", "loss_row_mask")
    parts = _split({name: getattr(trained, name) for name in names}, len(data))
    parts = [model.placement.put_rows(part) for part in parts]
    for batch, part in zip(data, parts, strict=True):
        if batch.loss_row_mask is not None:  # what was cut off is not learned from in any case
            part["loss_row_mask"] = (
                batch.loss_row_mask
                if part["loss_row_mask"] is None
                else batch.loss_row_mask & part["loss_row_mask"]
            )
    return [batch.replace(**part) for batch, part in zip(data, parts, strict=True)]


def _measured(config: TrainConfig, metrics: dict[str, float]) -> dict[str, float]:
    """Without the gap to the sampler where the old log-probs are its own, and the gap 0 whatever
    happens.
    """
    own = config.old_log_probs == "sampler"
    return {name: v for name, v in metrics.items() if not (own and name.endswith("logprob_diff"))}


def _verdict_speed(metrics: dict[str, float], verdicts: int) -> dict[str, float]:
    # With several rounds, nothing is computed meanwhile.
    waited = metrics.get("time/waiting_for_verdicts", metrics["time/verdicts"])
    return {
        "time/verdicts_per_second": verdicts / metrics["time/verdicts"],
        "time/share_waiting_for_verdicts": waited / metrics["time/step"],
    }


def _evaluation_steps(config: TrainConfig) -> set[int]:
    if config.evaluation is None:
        return set()
    every = config.run.evaluate_every
    return {0, config.steps} | (set(range(0, config.steps, every)) if every else set())


def _note(metrics: dict[str, float]) -> str:
    forms = {
        **{"correct": ".3f", "length": ".1f", "entropy": ".3f", "bonus_share": ".3f"},
        **{"explained_variance": ".3f", "time/step": ".1f"},
    }
    found = {name: f"{metrics[name]:{form}}" for name, form in forms.items() if name in metrics}
    return "  ".join(f"{name.removeprefix('time/')} {text}" for name, text in found.items())


def main(config: TrainConfig) -> None:
    """The verb `train` of the command line."""
    train(config)


if __name__ == "__main__":
    sys.exit(run_verb("train", sys.argv[1:]))
