"""What the loss of a config remembers from one update to the next, and what it makes of a mini-batch."""

from __future__ import annotations

from typing import Any

import jax

from entropy_rl.config import LossConfig
from entropy_rl.entropy_control import build_entropy_control
from entropy_rl.masked import masked_mean
from entropy_rl.memory import Memory, Seen, Signals, join_memories
from entropy_rl.surrogates import build_surrogate
from entropy_rl.types import TrainBatch


def loss_memory(loss: LossConfig) -> Memory | None:
    """The memory of a loss, whose state lives in `TrainState.memory`; None for a loss without one.

    Raises:
      ValueError: If what the loss names cannot be built.
    """
    return join_memories(
        entropy_coef=build_entropy_control(loss.entropy_coef),
        surrogate=build_surrogate(loss.surrogate).memory,
    )


def remember(
    memory: Memory | None, state: Any, step: jax.Array, batch: TrainBatch
) -> tuple[Any, Signals | None]:
    """What the memory of a loss makes of a mini-batch.

    Args:
      memory: From `loss_memory`.
      state: Its state, `TrainState.memory`.
      step: int32[], `TrainState.step`.
      batch: The mini-batch.

    Returns:
      (the next state, the signals for the loss); without a memory the state as it was, and None.

    Raises:
      ValueError: If there is a memory, and no state of it.
    """
    if memory is None:
        return state, None
    if state is None:
        raise ValueError("the loss has a memory and the state has none; give init_state loss_memory(loss)")
    return memory.update(state, see(step, batch))


def see(step: jax.Array, batch: TrainBatch) -> Seen:
    """What a memory sees of judged rows."""
    judged = batch.completion_mask & batch.valid[:, None]
    return Seen(
        step=step,
        entropy=masked_mean(batch.old_entropy, judged),
        reward=masked_mean(batch.rewards, batch.valid),
    )
