"""The teacher of on-policy distillation: a frozen model that scores mini-batches."""

from __future__ import annotations

from collections.abc import Callable

import jax

from entropy_rl.config.train import TrainConfig
from entropy_rl.distributed.sharding import Placement, commit
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.runs.load_model import load_other
from entropy_rl.trainer.programs import pass_settings
from entropy_rl.types import TrainBatch

TeacherFn = Callable[[TrainBatch], jax.Array]


def load_teacher(config: TrainConfig, placement: Placement) -> TeacherFn | None:
    """Load the teacher of a run.

    Args:
      config: The config.
      placement: Where the arrays of the run lie.

    Returns:
      (mini-batch) -> log-probs f32[B, N] of its completions; None for a run without a teacher.

    Raises:
      ValueError: As `load_model`.
    """
    if config.teacher is None:
        return None
    model = load_other(config.teacher.path, config.model, placement.mesh, "teacher.path")
    params = commit(model.params)
    stats = jax.jit(make_stats_pass(model.policy, pass_settings(config, placement)))
    return lambda batch: stats(params, batch)[0]
