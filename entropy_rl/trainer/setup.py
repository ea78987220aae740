"""Set up a training run: check the config, load the model, build the compiled functions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from entropy_rl.advantages import Transform
from entropy_rl.advantages.transform import TEACHER
from entropy_rl.config.train import TrainConfig, check_micro_batches
from entropy_rl.distributed import multihost as hosts
from entropy_rl.distributed.sharding import check_rows, commit, make_mesh
from entropy_rl.evaluation import evaluation_prompts
from entropy_rl.experience.episodes import turn_tokens
from entropy_rl.experience.planned_problems import PlannedProblems
from entropy_rl.experience.prompts import PromptBatch, Prompts
from entropy_rl.learner.critic import init_critic
from entropy_rl.losses.loss import Loss
from entropy_rl.rewards import Rewards
from entropy_rl.rollout.stop_strings import check_stop_strings
from entropy_rl.runs.directory import check_only_writer, check_run, check_run_visible
from entropy_rl.runs.hub import pin_models
from entropy_rl.runs.identity import (
    Identity,
    check_identity,
    check_same_config,
    data_identity,
    models_identity,
    prompts_identity,
)
from entropy_rl.runs.load_model import (
    Backbone,
    Model,
    check_length,
    check_same_tokenizer,
    load_backbone,
    load_model,
    read_model_files,
    with_adapter,
)
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.runs.nonfinite_updates import NonfiniteUpdates
from entropy_rl.tasks import EnvironmentTask, Task, load_task, problems_of
from entropy_rl.trainer.check_config import (
    build_methods,
    check_parts,
    check_prompts_per_problem,
    check_rewards_of_turns,
    check_sources,
    plan_problems,
)
from entropy_rl.trainer.programs import Programs, describe_update, make_programs
from entropy_rl.trainer.start import start_state
from entropy_rl.trainer.teacher import (
    TeacherFn,
    check_teacher,
    load_teacher,
    make_teacher_pass,
    teacher_in_loss,
)
from entropy_rl.types import TrainState

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of, before its first step.

    Attributes:
      config: The config.
      task: The task; to be closed.
      rewards: The rewards of a completion; to be closed.
      model: The policy. It has parameters only if they are needed as the reference of a KL penalty.
      prompts: The training prompts.
      test_prompts: Those of the evaluations, if there are any.
      programs: The compiled functions.
      advantage: The advantage, which says what it requires of the rollout.
      nonfinite_updates: Where updates go that cannot be applied.
      decisions: What the program decided about the passes of an update, for the log.
      identity: Digests of data, prompts and models, which a resumption must repeat.
      start: The state before the first step.
      planned: The problems that a curriculum chooses; None without one.
      teacher: (mini-batch) -> log-probs of the teacher; None if the advantage reads none.
    """

    config: TrainConfig
    task: Task
    rewards: Rewards
    model: Model
    prompts: Prompts
    test_prompts: Prompts | None
    programs: Programs
    advantage: Transform
    nonfinite_updates: NonfiniteUpdates
    decisions: str
    identity: Identity
    start: TrainState
    planned: PlannedProblems | None = None
    teacher: TeacherFn | None = None

    def prompts_of_round(self, round: int) -> PromptBatch:
        """The prompts of this process in a round of the run; without dynamic sampling, a step."""
        whole = self.config.rollout.dynamic_sampling is not None  # no mini-batches yet
        updates = 1 if whole else self.config.updates_per_step
        return _prompts_of_round(self.config, self.prompts, round, updates)

    def next_prompts(self, state: TrainState, step: int) -> PromptBatch:
        """The prompts of this process in a step, or in its first round.

        Args:
          state: Counts the rounds of the steps before, if a step may have several, and has the
            state of the curriculum.
          step: The step, from 0.
        """
        if self.planned is not None:
            places = self.planned.places(hosts.fetch(state.curriculum))
            updates = self.config.updates_per_step
            return self.prompts.at(places, hosts.index(), hosts.count(), updates)
        return self.prompts_of_round(step if state.rounds is None else int(state.rounds))

    def observe(
        self, curriculum: Any, outcomes: Mapping[int, float]
    ) -> tuple[Any, dict[str, float]]:
        """Return the state of the curriculum after a step, and its metrics.

        Args:
          curriculum: Its state before the step.
          outcomes: Fractions of correct completions by problem id.
        """
        new, metrics = self.planned.after(hosts.fetch(curriculum), outcomes)
        return self.model.placement.put_whole(new), metrics


def set_up(config: TrainConfig, others: Sequence[Setup] | None = None) -> Setup:
    """Check a config, cheap checks first, and build what its run is made of.

    Args:
      config: The config.
      others: Runs of adapters that are trained together with this one, on the same base and task,
        which are shared; so are the compiled functions of one that differs in its seed alone. Empty
        for the first of them, None for a run by itself.

    Raises:
      ValueError: If something in the config cannot work; before any training.
    """
    directory, rollout, batching = Path(config.run.directory), config.rollout, config.batching
    check_same_config(config)
    config = pin_models(config, directory)
    check_run(config)
    mesh = make_mesh(config.mesh)
    hosts.on_first(lambda: check_only_writer(config))
    check_run_visible(config)
    check_rows(mesh, batching.mini_batch_prompts, rollout.group_size, "batching.mini_batch_prompts")
    build_loggers(config.run)
    advantage, loss, rewards, curriculum = build_methods(config)
    if others:
        task = others[0].task
    else:
        task = load_task(config.task.name, config.task.args, config.task.episodes)
    if others is not None and isinstance(task, EnvironmentTask):
        name = config.task.name
        raise ValueError(
            f"task.name: must be a task of a single turn in runs that train together, got {name!r}"
        )
    check_parts(config, task)
    check_rewards_of_turns(advantage, rewards, task)
    problems = problems_of(task, config.task.train_split, "task.train_split")
    check_teacher(config)
    if config.critic is not None and config.critic.path is not None:
        check_same_tokenizer(config.critic.path, config.model.path, "critic.path")
    files = others[0].model if others else read_model_files(config.model)
    limit, tokenizer = rollout.max_prompt_tokens, files.tokenizer
    check_stop_strings(tokenizer, rollout.stop, "rollout.stop")
    together = check_prompts_per_problem(config, advantage, task)
    prompts = Prompts(problems, tokenizer, limit, config.seed, together)
    check_sources(advantage, prompts.problems)
    _prompts_of_round(config, prompts, 0, config.updates_per_step)
    planned = plan_problems(config, curriculum, prompts.problems)
    longest = prompts.length + rollout.max_new_tokens
    check_micro_batches(config, longest)
    test_prompts = None
    if config.evaluation is not None:
        check_stop_strings(tokenizer, config.evaluation.stop, "evaluation.stop")
        test_prompts = evaluation_prompts(config.evaluation, task, tokenizer, limit)
        longest = max(longest, test_prompts.length + config.evaluation.max_new_tokens)
    check_length(files, longest)
    of_turn = turn_tokens(task, config.decoding, rollout.max_new_tokens)
    data = _identify_data(config, task, tokenizer, prompts)
    hosts.check_same(data)
    identity = hosts.on_first(lambda: data | models_identity(config))
    if hosts.count() > 1:
        hosts.check_same(models_identity(config, whole=False))
    hosts.on_first(lambda: check_identity(directory, identity, config.run.accept_changes))
    # From here on, weights are read.
    key = jax.random.key(config.seed)
    if others:
        model = with_adapter(others[0].model, config.model, key)
    else:
        model = load_model(config.model, mesh, key, files)
    if config.model.lora is None:  # a LoRA run to go on from, with all parameters
        model = model.merged()
    backbone = load_backbone(config.critic.path, config.model, model) if config.critic else None
    teacher = load_teacher(config, model.placement)
    same = (one.programs for one in others or () if _differs_in_seed(one.config, config))
    programs = next(same, None)
    if programs is None:
        of_critic = backbone and backbone.policy
        in_loss = teacher_in_loss(config, teacher)
        programs = make_programs(config, model, advantage, loss, of_critic, of_turn, in_loss)
    decisions = describe_update(config, model, advantage, loss)
    several_rounds = rollout.dynamic_sampling is not None
    nonfinite_updates = NonfiniteUpdates(directory, batching.max_nonfinite_updates)
    start = _init_state(model, backbone, programs, loss, prompts.length, several_rounds)
    if planned is not None:
        start = start.replace(curriculum=model.placement.put_whole(planned.start))
    # The starting policy is needed as a reference alone, by programs that run on the state too. It
    # shares the base of an adapter.
    reference = commit(model.params) if config.loss.kl_coef else None
    model = dataclasses.replace(model, params=reference, adapter=None)
    reads = TEACHER in advantage.requires
    return Setup(
        config=config,
        task=task,
        rewards=rewards,
        model=model,
        prompts=prompts,
        test_prompts=test_prompts,
        programs=programs,
        advantage=advantage,
        nonfinite_updates=nonfinite_updates,
        decisions=decisions,
        identity=identity,
        start=start,
        planned=planned,
        teacher=make_teacher_pass(config, teacher, model.placement) if reads else None,
    )


def _identify_data(config: TrainConfig, task: Task, tokenizer: Any, prompts: Prompts) -> Identity:
    """Return digests of the data, prompts and chat template of a run."""
    splits = {config.task.train_split, *([config.evaluation.split] if config.evaluation else [])}
    identity = data_identity({split: task.problems(split) for split in sorted(splits)})
    return identity | prompts_identity(prompts.problems, prompts.encoded, tokenizer)


def _differs_in_seed(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether two configs have the same compiled functions: all but seed and directories agree."""
    run = dataclasses.replace(other.run, samples_per_step=one.run.samples_per_step)
    return dataclasses.replace(one, seed=other.seed, run=run) == other


def _prompts_of_round(
    config: TrainConfig, prompts: Prompts, round: int, updates: int
) -> PromptBatch:
    return prompts.step(round, config.rollout.prompts, hosts.index(), hosts.count(), updates)


def _init_state(
    model: Model,
    backbone: Backbone | None,
    programs: Programs,
    loss: Loss,
    prompt_length: int,
    several_rounds: bool,
) -> TrainState:
    state = start_state(
        model, programs.optimizer, controller=loss.controller, several_rounds=several_rounds
    )
    if backbone is not None:
        constrain = None if model.placement.mesh is None else model.placement.constrain
        optimizer = programs.critic.optimizer
        critic = init_critic(backbone.params, backbone.hidden_size, optimizer, constrain)
        state = state.replace(critic=critic)
    if programs.replay is not None:
        state = state.replace(replay_buffer=programs.replay.init(prompt_length))
    return state
