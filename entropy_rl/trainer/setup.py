"""Set up a training run: check the config, load the model, build the compiled functions."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from entropy_rl.advantages import Transform, advantage_of
from entropy_rl.advantages.build import abstract_stats
from entropy_rl.advantages.transform import OTHER_PROMPT, TEACHER, named_sources
from entropy_rl.config.checks import require
from entropy_rl.config.train import TrainConfig, check_micro_batches
from entropy_rl.curricula import Curriculum, build_curriculum
from entropy_rl.distributed import multihost as hosts
from entropy_rl.distributed.sharding import check_rows, commit, make_mesh
from entropy_rl.evaluation import evaluation_problems, evaluation_prompts
from entropy_rl.experience.episodes import turn_tokens
from entropy_rl.experience.planned_problems import PlannedProblems
from entropy_rl.experience.prompts import PromptBatch, Prompts
from entropy_rl.learner.critic import init_critic
from entropy_rl.learner.replay import check_replay
from entropy_rl.learner.replay_rule import build_replay
from entropy_rl.losses.build import build_loss, check_traces
from entropy_rl.losses.loss import Loss
from entropy_rl.rewards import Rewards, build_rewards
from entropy_rl.rollout.stop_strings import check_stop_strings
from entropy_rl.runs.directory import check_no_writer, check_run
from entropy_rl.runs.hub import pin_models
from entropy_rl.runs.identity import (
    Identity,
    adapter_identity,
    check_identity,
    data_identity,
    model_identity,
    prompts_identity,
)
from entropy_rl.runs.load_model import (
    Backbone,
    Model,
    check_length,
    check_models,
    check_same_tokenizer,
    load_backbone,
    load_model,
    read_model_files,
    with_adapter,
)
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.runs.nonfinite_updates import NonfiniteUpdates
from entropy_rl.tasks import EnvironmentTask, Problem, Task, closing, load_task, problems_of
from entropy_rl.tasks.problems import prompts_per_problem
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

    @property
    def updates(self) -> int:
        """Mini-batches of a step."""
        return _updates(self.config)

    def prompts_of_round(self, round: int) -> PromptBatch:
        """The prompts of this process in a round of the run; without dynamic sampling, a step."""
        whole = self.config.rollout.dynamic_sampling is not None  # no mini-batches yet
        return _prompts_of_round(self.config, self.prompts, round, 1 if whole else self.updates)

    def next_prompts(self, state: TrainState, step: int) -> PromptBatch:
        """The prompts of this process in a step, or in its first round.

        Args:
          state: Counts the rounds of the steps before, if a step may have several, and has the
            state of the curriculum.
          step: The step, from 0.
        """
        if self.planned is not None:
            places = self.planned.places(hosts.fetch(state.curriculum))
            return self.prompts.at(places, hosts.index(), hosts.count(), self.updates)
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
    config = pin_models(config, directory)
    check_run(config)
    mesh = make_mesh(config.mesh)
    hosts.on_first(lambda: check_no_writer(config))
    check_rows(mesh, batching.mini_batch_prompts, rollout.group_size, "batching.mini_batch_prompts")
    build_loggers(config.run)
    advantage, loss = _build_methods(config)
    rewards = _build_rewards(config)
    curriculum = build_curriculum(config.curriculum)
    if others:
        task = others[0].task
    else:
        task = load_task(config.task.name, config.task.args, config.task.episodes)
    if others is not None and isinstance(task, EnvironmentTask):
        name = config.task.name
        raise ValueError(
            f"task.name: must be a task of a single turn in runs that train together, got {name!r}"
        )
    _check_parts(config, task)
    problems = problems_of(task, config.task.train_split, "task.train_split")
    check_teacher(config)
    if config.critic is not None and config.critic.path is not None:
        check_same_tokenizer(config.critic.path, config.model.path, "critic.path")
    files = others[0].model if others else read_model_files(config.model)
    limit, tokenizer = rollout.max_prompt_tokens, files.tokenizer
    check_stop_strings(tokenizer, rollout.stop, "rollout.stop")
    together = _check_prompts_per_problem(config, advantage, task)
    prompts = Prompts(problems, tokenizer, limit, config.seed, together)
    _check_sources(advantage, prompts.problems)
    _prompts_of_round(config, prompts, 0, _updates(config))
    planned = _plan_problems(config, curriculum, prompts.problems)
    longest = prompts.length + rollout.max_new_tokens
    check_micro_batches(config, longest)
    test_prompts = None
    if config.evaluation is not None:
        check_stop_strings(tokenizer, config.evaluation.stop, "evaluation.stop")
        test_prompts = evaluation_prompts(config.evaluation, task, tokenizer, limit)
        longest = max(longest, test_prompts.length + config.evaluation.max_new_tokens)
    check_length(files, longest)
    of_turn = turn_tokens(task, config.decoding, rollout.max_new_tokens)
    identity = hosts.on_first(lambda: _identify(config, task, tokenizer, prompts))
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


def check_methods(config: TrainConfig) -> Transform:
    """Check the methods that a config names, their arguments, and that they fit each other.

    Returns:
      The advantage.

    Raises:
      ValueError: If something in the config cannot work.
    """
    advantage, _ = _build_methods(config)
    _build_rewards(config)
    build_curriculum(config.curriculum)
    return advantage


def check_config(config: TrainConfig) -> None:
    """Check what needs no device and no weights: directories, methods, problems and models.

    Raises:
      ValueError: If something in the config cannot work.
    """
    check_run(pin_models(config, Path(config.run.directory), ask=False))
    build_loggers(config.run)
    advantage = check_methods(config)
    task = load_task(config.task.name, config.task.args, config.task.episodes)
    with closing(task):
        check_problems(config, advantage, task)
    check_models(config, fetch=False)


def check_problems(config: TrainConfig, advantage: Transform, task: Task) -> None:
    """Check that a task has the problems that a run needs.

    Args:
      config: The config.
      advantage: Its advantage.
      task: Its task.

    Raises:
      ValueError: If it has not.
    """
    _check_prompts_per_problem(config, advantage, task)
    _check_parts(config, task)
    problems = problems_of(task, config.task.train_split, "task.train_split")
    _check_sources(advantage, problems)
    prompts, allowed = config.rollout.prompts, f"at most {len(problems)}, the problems"
    require(prompts <= len(problems), "rollout.prompts", prompts, allowed)
    _plan_problems(config, build_curriculum(config.curriculum), problems)
    if config.evaluation is not None:
        evaluation_problems(config.evaluation, task)


def _plan_problems(
    config: TrainConfig, curriculum: Curriculum | None, problems: Sequence[Problem]
) -> PlannedProblems | None:
    """Return the problems that a curriculum chooses, after a first choice; None without one."""
    if curriculum is None:
        return None
    return PlannedProblems(curriculum, problems, config.seed, config.rollout.prompts)


def _check_parts(config: TrainConfig, task: Task) -> None:
    """Check that a reward by a part has a value for an episode that reaches a limit."""
    for i, spec in enumerate(config.rewards):
        is_safe = spec["name"] != "part" or spec.get("missing") is not None
        require(
            is_safe or not isinstance(task, EnvironmentTask),
            f"rewards[{i}].missing",
            None,
            "a number with a task of several turns: an episode that reaches a limit has no parts",
        )


def _build_rewards(config: TrainConfig) -> Rewards:
    return build_rewards(config.rewards, config.reward, config.rollout.max_new_tokens)


def _identify(config: TrainConfig, task: Task, tokenizer: Any, prompts: Prompts) -> Identity:
    """Return digests of the data, prompts, chat template and models of a run."""
    splits = {config.task.train_split, *([config.evaluation.split] if config.evaluation else [])}
    identity = data_identity({split: task.problems(split) for split in sorted(splits)})
    identity |= prompts_identity(prompts.problems, prompts.encoded, tokenizer)
    identity |= model_identity(config.model.path)
    if config.model.lora is not None and config.model.lora.path is not None:
        identity["weights"] |= adapter_identity(config.model.lora.path)
    if config.critic is not None and config.critic.path is not None:
        for name, parts in model_identity(config.critic.path, "critic.path").items():
            identity[name] |= parts
    if config.teacher is not None:
        for name, parts in model_identity(config.teacher.path, "teacher.path").items():
            identity[name] |= parts
    return identity


def _build_methods(config: TrainConfig) -> tuple[Transform, Loss]:
    """Build advantage and loss, and check that critic, replay and sampling fit them."""
    if config.critic is not None and 0 < config.steps <= config.critic.warmup_steps:
        log.warning("critic.warmup_steps: in all %d steps the critic learns alone", config.steps)
    advantage = advantage_of(config)
    loss = build_loss(config.loss, config.rollout.max_new_tokens)
    check_traces(loss, abstract_stats(config, advantage))
    replay = build_replay(config.replay, config.rollout.group_size)
    if replay is not None:
        check_replay(config.replay, replay, advantage, loss, config.critic is not None)
    _check_sampler_correction(config, loss)
    _check_reads_teacher(config, advantage)
    return advantage, loss


def _check_reads_teacher(config: TrainConfig, advantage: Transform) -> None:
    """Check that there is a teacher if and only if the advantage or the loss reads it."""
    given = None if config.teacher is None else config.teacher.path
    if TEACHER in advantage.requires:
        have = "given for the advantage on_policy_distillation"
        require(given is not None, "teacher", given, have)
    elif given is not None:
        have = (
            "null without an advantage that reads it, such as {name: on_policy_distillation}, or "
            "teacher.top_k"
        )
        require(config.teacher.top_k is not None, "teacher", given, have)


def _check_sources(advantage: Transform, problems: Sequence[Problem]) -> None:
    """Check that there are problems of the sources that an advantage tells apart, and others."""
    for i, member in enumerate(advantage.members):
        for source in named_sources(member):
            count = sum(problem.is_from(source) for problem in problems)
            if not 0 < count < len(problems):
                raise ValueError(
                    f"advantage[{i}]: must name a source of some of the problems and not of all, "
                    f"got {source!r} with {count} of {len(problems)}; their sources are "
                    f"{', '.join(sorted({problem.source for problem in problems})) or 'empty':.200}"
                )


def _check_prompts_per_problem(config: TrainConfig, advantage: Transform, task: Task) -> int:
    """Return the prompts of each problem, and check that an advantage which compares two has them.

    Raises:
      ValueError: It has not, or they would not stay together.
    """
    count = prompts_per_problem(task, config.task.train_split)
    require(
        count == 1 or config.curriculum is None,
        "curriculum",
        config.curriculum,
        f"null with the task {config.task.name}, which has {count} prompts for each problem",
    )
    readers = [i for i, m in enumerate(advantage.members) if OTHER_PROMPT in m.requires]
    if readers:
        path = f"advantage[{readers[0]}]"
        require(
            count == 2,
            path,
            f"{count} of the task {config.task.name}",
            "used with two prompts for each problem, such as those of the task two_prompts",
        )
        require(
            config.rollout.dynamic_sampling is None,
            path,
            "rollout.dynamic_sampling",
            "used without dynamic sampling, which may drop the group of one of two prompts",
        )
    return count


def _check_sampler_correction(config: TrainConfig, loss: Loss) -> None:
    """Check that importance weights have the log-probs of two different passes to compare."""
    names = [spec["name"] for spec in config.loss.token_weights]
    require(
        loss.token_weighting is None
        or not loss.token_weighting.corrects_sampler
        or (config.old_log_probs == "trainer" and config.rollout.top_p == 1),
        "loss.token_weights",
        names,
        "without importance weights unless old_log_probs is trainer and rollout.top_p is 1",
    )
    require(
        config.rollout.exploration is None or "geometric_rejection" not in names,
        "loss.token_weights",
        names,
        "without geometric_rejection if rollout.exploration is set, because it would reject all "
        "rows of another temperature",
    )


def _differs_in_seed(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether two configs have the same compiled functions: all but seed and directories agree."""
    run = dataclasses.replace(other.run, samples_per_step=one.run.samples_per_step)
    return dataclasses.replace(one, seed=other.seed, run=run) == other


def _updates(config: TrainConfig) -> int:
    return config.rollout.prompts // config.batching.mini_batch_prompts


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
