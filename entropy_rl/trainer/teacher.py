"""The teacher of on-policy distillation: a frozen model that scores mini-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from entropy_rl.config.checks import require
from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed.sharding import Placement, commit
from entropy_rl.learner.distillation import Teacher
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.runs.load_model import Model, check_same_tokenizer, load_other
from entropy_rl.trainer.programs import pass_settings
from entropy_rl.types import TrainBatch

TeacherFn = Callable[[TrainBatch], jax.Array]


def check_teacher(config: TrainConfig) -> None:
    """Check the vocabulary of the teacher of a run, before weights are read.

    Raises:
      ValueError: If it is not that of the policy, or has fewer than `teacher.top_k` tokens.
    """
    teacher = config.teacher
    if teacher is None:
        return
    tokens = check_same_tokenizer(teacher.path, config.model.path, "teacher.path")
    require(
        teacher.top_k is None or teacher.top_k <= tokens,
        "teacher.top_k",
        teacher.top_k,
        f"null or <= {tokens}, the tokens of the vocabulary",
    )


def load_teacher(config: TrainConfig, placement: Placement) -> Model | None:
    """Load the teacher of a run.

    Args:
      config: The config.
      placement: Where the arrays of the run lie.

    Returns:
      The model; None for a run without a teacher.

    Raises:
      ValueError: As `load_model`.
    """
    if config.teacher is None:
        return None
    model = load_other(config.teacher.path, config.model, placement.mesh, "teacher.path")
    return dataclasses.replace(model, params=commit(model.params))


def teacher_in_loss(config: TrainConfig, model: Model | None) -> Teacher | None:
    """Return what the loss reads of a teacher; None without `teacher.top_k`."""
    if model is None or config.teacher.top_k is None:
        return None
    return Teacher(model.policy, model.params, config.teacher.top_k, config.teacher.coef)


def make_teacher_pass(config: TrainConfig, model: Model, placement: Placement) -> TeacherFn:
    """Build (mini-batch) -> log-probs f32[B, N] of a teacher at its completions."""
    stats = jax.jit(make_stats_pass(model.policy, pass_settings(config, placement)))
    return lambda batch: stats(model.params, batch)[0]
