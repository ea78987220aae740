"""Check the config of a training run before a model is read, and build its methods."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from entropy_rl.advantages import Transform, advantage_of, before_values
from entropy_rl.advantages.build import abstract_stats
from entropy_rl.advantages.transform import OTHER_PROMPT, TEACHER, named_sources
from entropy_rl.config.checks import require
from entropy_rl.config.train import TrainConfig
from entropy_rl.curricula import Curriculum, build_curriculum
from entropy_rl.evaluation import evaluation_problems
from entropy_rl.experience.planned_problems import PlannedProblems
from entropy_rl.learner.replay import check_replay
from entropy_rl.learner.replay_rule import build_replay
from entropy_rl.losses.build import build_loss, check_traces
from entropy_rl.losses.loss import Loss
from entropy_rl.rewards import Rewards, build_rewards
from entropy_rl.runs.directory import check_only_writer, check_run
from entropy_rl.runs.hub import pin_models
from entropy_rl.runs.load_model import check_models
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.tasks import EnvironmentTask, Problem, Task, closing, load_task, problems_of
from entropy_rl.tasks.problems import prompts_per_problem

log = logging.getLogger(__name__)


class Methods(NamedTuple):
    """What a config builds of functions by name."""

    advantage: Transform
    loss: Loss
    rewards: Rewards
    curriculum: Curriculum | None


def build_methods(config: TrainConfig) -> Methods:
    """Build the methods that a config names, and check that they fit each other.

    Raises:
      ValueError: If a name, an argument or a combination of them cannot work.
    """
    if config.critic is not None and 0 < config.steps <= config.critic.warmup_steps:
        log.warning("critic.warmup_steps: in all %d steps the critic learns alone", config.steps)
    for section, is_critic in (("optimizer", False), ("critic", True)):
        if (of := getattr(config, section)) is not None:
            total = config.total_updates(is_critic)
            warn_of_warmup(f"{section}.warmup_updates", of.warmup_updates, total)
    advantage = advantage_of(config)
    loss = build_loss(config.loss, config.rollout.max_new_tokens)
    stats = abstract_stats(config, advantage)
    check_traces(loss, stats)
    replay = build_replay(config.replay, config.rollout.group_size)
    if replay is not None:
        check_replay(config.replay, replay, advantage, loss, config.critic is not None, stats)
    _check_sampler_correction(config, loss)
    _check_reads_teacher(config, advantage)
    rewards = build_rewards(config.rewards, config.reward, config.rollout.max_new_tokens)
    _check_lowest_reward(config, advantage, rewards)
    return Methods(advantage, loss, rewards, build_curriculum(config.curriculum))


def warn_of_warmup(field: str, warmup_updates: int, total_updates: int) -> None:
    """Warn of a warm-up that is not over before the last update of a run.

    Args:
      field: The config field of the warm-up.
      warmup_updates: Its updates.
      total_updates: Those of the run.
    """
    if warmup_updates > 1 and 0 < total_updates <= warmup_updates:
        log.warning("%s: the learning rate rises in all %d updates", field, total_updates)


def check_config(config: TrainConfig) -> None:
    """Check what needs no device and no weights: directories, methods, problems and models.

    Raises:
      ValueError: If something in the config cannot work.
    """
    check_run(pin_models(config, Path(config.run.directory), ask=False))
    check_only_writer(config)
    build_loggers(config.run)
    methods = build_methods(config)
    task = load_task(config.task.name, config.task.args, config.task.episodes)
    with closing(task):
        check_problems(config, methods, task)
    check_models(config, fetch=False)


def check_problems(config: TrainConfig, methods: Methods, task: Task) -> None:
    """Check that a task has the problems that a run needs.

    Args:
      config: The config.
      methods: Its methods.
      task: Its task.

    Raises:
      ValueError: If it has not.
    """
    check_prompts_per_problem(config, methods.advantage, task)
    check_parts(config, task)
    check_rewards_of_turns(methods.advantage, methods.rewards, task)
    problems = problems_of(task, config.task.train_split, "task.train_split")
    check_sources(methods.advantage, problems)
    prompts, allowed = config.rollout.prompts, f"at most {len(problems)}, the problems"
    require(prompts <= len(problems), "rollout.prompts", prompts, allowed)
    plan_problems(config, methods.curriculum, problems)
    if config.evaluation is not None:
        evaluation_problems(config.evaluation, task)


def plan_problems(
    config: TrainConfig, curriculum: Curriculum | None, problems: Sequence[Problem]
) -> PlannedProblems | None:
    """Return the problems that a curriculum chooses, after a first choice; None without one."""
    if curriculum is None:
        return None
    return PlannedProblems(curriculum, problems, config.seed, config.rollout.prompts)


def check_parts(config: TrainConfig, task: Task) -> None:
    """Check that a reward by a part has a value for an episode that reaches a limit."""
    for i, spec in enumerate(config.rewards):
        is_safe = spec["name"] != "part" or spec.get("missing") is not None
        require(
            is_safe or not isinstance(task, EnvironmentTask),
            f"rewards[{i}].missing",
            None,
            "a number with a task of several turns: an episode that reaches a limit has no parts",
        )


def check_rewards_of_turns(advantage: Transform, rewards: Rewards, task: Task) -> None:
    """Check that the advantage keeps the scale of the rewards of turns before it reads values."""
    if not isinstance(task, EnvironmentTask) or not rewards.weight_of_turns:
        return
    before = before_values(advantage).members if "values" in advantage.requires else ()
    for i, member in enumerate(before):
        require(
            member.shifts,
            f"advantage[{i}]",
            "shifts=False",
            "a transform that only shifts the rewards, such as group_center, before one that reads "
            "values, in a task of several turns: rewards of turns keep their scale",
        )


def _check_lowest_reward(config: TrainConfig, advantage: Transform, rewards: Rewards) -> None:
    """Check that there are no negative rewards for a transform that needs this."""
    for i, member in enumerate(advantage.members):
        if member.reads == "nonnegative rewards":
            before = [s for s in config.advantage[:i] if s["name"] == "overlong_penalty"]
            lowest = rewards.lowest - sum(spec.get("factor", 1.0) for spec in before)
            require(
                lowest >= 0,
                f"advantage[{i}]",
                lowest,
                "used with rewards >= 0 (reward.wrong, rewards, and penalties before it)",
            )


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


def check_sources(advantage: Transform, problems: Sequence[Problem]) -> None:
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


def check_prompts_per_problem(config: TrainConfig, advantage: Transform, task: Task) -> int:
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
