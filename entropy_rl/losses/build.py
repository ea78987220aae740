"""What the loss of a config remembers from one update to the next, and what it makes of a
mini-batch.
"""

from __future__ import annotations

from typing import Any

import jax

from entropy_rl.config.train import LossConfig
from entropy_rl.losses.build_surrogate import build_surrogate
from entropy_rl.losses.controller import BatchSummary, Coefficients, Controller, join_controllers
from entropy_rl.losses.controllers import build_entropy_control
from entropy_rl.masked import masked_mean
from entropy_rl.types import TrainBatch


def loss_controller(loss: LossConfig) -> Controller | None:
    """The controller of a loss, whose state lives in `TrainState.controller`; None for a loss
    without one.

    Raises:
      ValueError: If what the loss names cannot be built.
    """
    return join_controllers(
        entropy_coef=build_entropy_control(loss.entropy_coef),
        surrogate=build_surrogate(loss.surrogate).controller,
    )


def update_controller(
    controller: Controller | None, state: Any, step: jax.Array, batch: TrainBatch
) -> tuple[Any, Coefficients | None]:
    """What the controller of a loss makes of a mini-batch.

    Args:
      controller: From `loss_controller`.
      state: Its state, `TrainState.controller`.
      step: int32[], `TrainState.step`.
      batch: The mini-batch.

    Returns:
      (the next state, the coefficients for the loss); without a controller the state as it was, and
      None.

    Raises:
      ValueError: If there is a controller, and no state of it.
    """
    if controller is None:
        return state, None
    if state is None:
        raise ValueError(
            "the loss has a memory and the state has none; give init_state loss_controller(loss)"
        )
    return controller.update(state, summarize_batch(step, batch))


def summarize_batch(step: jax.Array, batch: TrainBatch) -> BatchSummary:
    """What a controller sees of judged rows."""
    judged = batch.completion_mask & batch.has_reward[:, None]
    return BatchSummary(
        step=step,
        entropy=masked_mean(batch.old_entropy, judged),
        reward=masked_mean(batch.rewards, batch.has_reward),
    )
