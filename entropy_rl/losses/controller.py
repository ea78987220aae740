"""`Controller`: state of a method from one update to the next, as an (init, update) pair.

The state is part of `TrainState`: it is in the checkpoint, and an update that is not applied does
not change it. From the state and a summary of the mini-batch the controller computes coefficients,
scalars that the loss of every token reads, and that are metrics. They are computed before the
gradient from what was recorded of the whole mini-batch, so they cost no forward pass and do not
depend on micro-batches or devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.masked import masked_mean
from entropy_rl.types import TrainBatch

Coefficients = dict[str, jax.Array]  # f32[] each, by the name of its metric

# The metrics of an update, whose names no coefficient may have.
UPDATE_METRICS = frozenset(
    {
        *("loss", "grad_norm", "tokens", "learning_rate", "nonfinite_updates", "entropy"),
        *("advantage", "bonus", "bonus_share", "clip_low", "clip_high", "clip_dual"),
        *("kl_sampler", "kl_reference", "kl_teacher", "logprob_diff"),
        *("token_weight", "tokens_kept", "tokens_held"),
    }
)


class BatchSummary(NamedTuple):
    """Statistics of a mini-batch before its gradient, or of a whole rollout before its updates."""

    step: jax.Array  # int32[], rollouts before that of the mini-batch
    # f32[], nats; mean over the tokens of scored rows, before the first update on the rollout
    entropy: jax.Array
    reward: jax.Array  # f32[], mean over scored rows
    surprisal: jax.Array  # f32[], nats; mean of -log π_old over the tokens of scored rows
    tokens: jax.Array  # f32[], how many these are


class Controller(NamedTuple):
    """An (init, update) pair, in the manner of `optax.GradientTransformation`.

    Attributes:
      init: () -> state before the first update, a pytree of arrays f32[], int32[] or bool[].
      update: (state, summary) -> (state, coefficients).
    """

    init: Callable[[], Any]
    update: Callable[[Any, BatchSummary], tuple[Any, Coefficients]]


def join_controllers(**controllers: Controller | None) -> Controller | None:
    """Join several controllers into one; None if all are None.

    Args:
      **controllers: By name; their coefficients must have different names.
    """
    present = {
        name: controller for name, controller in controllers.items() if controller is not None
    }
    if not present:
        return None

    def init() -> Any:
        return {name: controller.init() for name, controller in present.items()}

    def update(state: Any, summary: BatchSummary) -> tuple[Any, Coefficients]:
        results = {
            name: checked_update(controller, state[name], summary)
            for name, controller in present.items()
        }
        pairs = [pair for _, of_one in results.values() for pair in of_one.items()]
        coefficients = dict(pairs)
        if len(coefficients) < len(pairs):
            names = ", ".join(name for name, _ in pairs)
            raise ValueError(f"controllers: must have coefficients of other names, got {names}")
        return {name: new for name, (new, _) in results.items()}, coefficients

    return Controller(init, update)


def checked_update(
    controller: Controller, state: Any, summary: BatchSummary
) -> tuple[Any, Coefficients]:
    """Call `controller.update`, and check what it returns.

    Raises:
      ValueError: The state has not the structure, shapes and dtypes of the one before, which is
        part of a compiled program and of checkpoints; a coefficient is no scalar, or has the name
        of another metric.
    """
    new, coefficients = controller.update(state, summary)
    if jax.tree.flatten(_layout(new)) != jax.tree.flatten(_layout(state)):
        raise ValueError(
            f"Controller.update: must return a state as that of init, {_layout(state)}, got "
            f"{_layout(new)}"
        )
    if not isinstance(coefficients, Mapping) or any(map(jnp.ndim, coefficients.values())):
        raise ValueError(
            f"Controller.update: must return scalars by name, got {_layout(coefficients)}"
        )
    if taken := UPDATE_METRICS.intersection(coefficients):
        raise ValueError(
            "Controller.update: must give its coefficients other names than the metrics of an "
            f"update have, got {', '.join(sorted(taken))}"
        )
    return new, coefficients


def trace_controller(controller: Controller) -> Coefficients:
    """Trace an update of a controller; returns the shapes of its coefficients.

    Raises:
      ValueError: As `checked_update`.
    """
    number = jax.ShapeDtypeStruct((), jnp.float32)
    summary = BatchSummary(jax.ShapeDtypeStruct((), jnp.int32), *[number] * 4)
    return jax.eval_shape(
        lambda summary: checked_update(controller, controller.init(), summary)[1], summary
    )


def _layout(tree: Any) -> Any:
    """A tree with dtypes and shapes in place of its leaves, as texts."""
    return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)


def update_controller(
    controller: Controller | None, state: Any, step: jax.Array, batch: TrainBatch
) -> tuple[Any, Coefficients]:
    """Update the controller of a loss with a mini-batch.

    Args:
      controller: `Loss.controller`.
      state: Its state, `TrainState.controller`.
      step: int32[], `TrainState.step`.
      batch: The mini-batch.

    Returns:
      (the next state, the coefficients for the loss); without a controller, the state as it was
      and no coefficients.

    Raises:
      ValueError: There is a controller and no state of it.
    """
    if controller is None:
        return state, {}
    if state is None:
        raise ValueError(
            "TrainState.controller: must be the state of the controller of the loss, got None; "
            "init_state takes controller=loss.controller"
        )
    return checked_update(controller, state, summarize_batch(step, batch))


def summarize_batch(step: jax.Array, batch: TrainBatch) -> BatchSummary:
    """Summarize the rows of a mini-batch that have a reward."""
    mask = batch.completion_mask & batch.has_reward[:, None]
    return BatchSummary(
        step=step,
        entropy=masked_mean(batch.old_entropy, mask),
        reward=masked_mean(batch.rewards, batch.has_reward),
        surprisal=-masked_mean(batch.old_log_probs, mask),
        tokens=jnp.sum(mask, dtype=jnp.float32),
    )
