"""The part of the state before the first step that training by rewards and supervised share."""

from __future__ import annotations

from typing import Any

import jax

from entropy_rl.distributed.host_memory import check_memory
from entropy_rl.learner.optimizer import Optimizer
from entropy_rl.learner.update import init_state
from entropy_rl.runs.load_model import Model
from entropy_rl.types import TrainState


def start_state(model: Model, optimizer: Optimizer, **options: Any) -> TrainState:
    """Return the state of what a run updates.

    Args:
      model: The model.
      optimizer: The optimizer.
      **options: Of `init_state`.

    Raises:
      ValueError: The memory of the machine is too small for gradient and optimizer state.
    """
    trained, placement = model.trained, model.placement
    check_memory((trained, jax.eval_shape(optimizer.init, trained)), "gradient and optimizer state")
    constrain = None if placement.mesh is None else placement.constrain
    return init_state(trained, optimizer, constrain, **options)
