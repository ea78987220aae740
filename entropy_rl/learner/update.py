"""`make_update`: one update of the policy, jitted and donated.

token stats -> advantage -> loss -> gradient -> optimizer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_rl.advantages import Transform
from entropy_rl.advantages.transform import AdvantageFn
from entropy_rl.learner.distillation import Teacher
from entropy_rl.learner.gradient import make_gradient
from entropy_rl.learner.optimizer import Optimizer
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.losses.controller import Controller, update_controller
from entropy_rl.losses.loss import Loss
from entropy_rl.precision import check_32_bit
from entropy_rl.types import Params, Policy, TrainBatch, TrainState

UpdateFn = Callable[[TrainState, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation | Optimizer,
    constrain: Callable[[Any], Any] | None = None,
    *,
    controller: Controller | None = None,
    several_rounds: bool = False,
) -> TrainState:
    """Build the state before the first step, with a copy of the parameters: updates donate it.

    Args:
      params: The parameters.
      optimizer: The optimizer.
      constrain: Constrains the sharding of a tree with the names of the parameters; None on one
        device.
      controller: `Loss.controller`, if the loss has one.
      several_rounds: Whether a step may have several rounds of sampling, which are then counted.
    """

    def init(params: Params) -> TrainState:
        params = jax.tree.map(jnp.copy, params)
        counts = dict(step=jnp.int32(0), updates=jnp.int32(0))
        if several_rounds:
            counts["rounds"] = jnp.int32(0)
        # Copied like the parameters: a state may be a number, or an array that the caller keeps.
        new_controller = jax.tree.map(
            lambda x: jnp.array(x, copy=True), None if controller is None else controller.init()
        )
        return TrainState(
            params=params, opt_state=optimizer.init(params), controller=new_controller, **counts
        )

    return (
        init(params)
        if constrain is None
        else jax.jit(lambda params: constrain(init(params)))(params)
    )


def make_update(
    policy: Policy,
    advantage: Transform | AdvantageFn,
    optimizer: optax.GradientTransformation | Optimizer,
    loss: Loss = Loss(),
    settings: PassSettings = PassSettings(),
    teacher: Teacher | None = None,
) -> UpdateFn:
    """Build the update on one mini-batch: its gradient, applied by an optimizer.

    An update whose gradient is not finite, or without a token that has a loss, leaves parameters,
    optimizer and controller unchanged.

    Args:
      policy: The model.
      advantage: The advantage, as in `make_gradient`.
      optimizer: Its state is `TrainState.opt_state`.
      loss: The loss. The state of its controller is `TrainState.controller`.
      settings: Temperature and micro-batches.
      teacher: Adds the divergence to a teacher to the loss, as in `make_gradient`. Its parameters
        are constants of the program, unless the caller passes them to a jitted function around it.

    Returns:
      A jitted function `(state, batch: TrainBatch) -> (state, metrics: dict of f32[])`; the state
      is donated.

    Raises:
      ValueError: `settings.fuse_loss` is True and a scope does not allow it.
    """
    check_32_bit()
    gradient = make_gradient(policy, advantage, loss, settings, teacher)
    controller = loss.controller

    def update(state: TrainState, batch: TrainBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        new_controller, coefficients = update_controller(
            controller, state.controller, state.step, batch
        )
        with jax.named_scope("gradient"):
            grads, metrics = gradient(state.params, batch, coefficients)
        metrics |= learning_rate_of(optimizer, state.opt_state)
        with jax.named_scope("optimizer"):
            params, opt_state = apply_gradient(
                optimizer, grads, state.params, state.opt_state, metrics
            )
        new_controller = jax.tree.map(
            lambda new, old: jnp.where(_applied(metrics), new, old),
            new_controller,
            state.controller,
        )
        state = state.replace(
            params=params, opt_state=opt_state, updates=state.updates + 1, controller=new_controller
        )
        return settings.constrained(state), metrics

    return jax.jit(update, donate_argnums=0)


def learning_rate_of(
    optimizer: optax.GradientTransformation | Optimizer, opt_state: Any
) -> dict[str, jax.Array]:
    """Return the metric `learning_rate` f32[] of the next update, if the optimizer knows it."""
    if not isinstance(optimizer, Optimizer):
        return {}
    return {"learning_rate": optimizer.learning_rate(opt_state)}


def apply_gradient(
    optimizer: optax.GradientTransformation | Optimizer,
    grads: Params,
    params: Params,
    opt_state: Any,
    metrics: Mapping[str, jax.Array],
) -> tuple[Params, Any]:
    """Apply an optimizer, unless the gradient is not finite or there was no token.

    Args:
      optimizer: The optimizer.
      grads: The gradient.
      params: The parameters.
      opt_state: The optimizer's state.
      metrics: `grad_norm` f32[] and `tokens` int32[] of the gradient.

    Returns:
      (params, opt_state).
    """

    def apply(params: Params, opt_state: Any) -> tuple[Params, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    # Not a `jnp.where` of old and new values: XLA's CPU compiler would copy both moments of Adam.
    return jax.lax.cond(_applied(metrics), apply, lambda *old: old, params, opt_state)


def _applied(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """Whether the update is applied, bool[]."""
    # Without a token, momentum and weight decay would still change the parameters.
    return (metrics["tokens"] > 0) & jnp.isfinite(metrics["grad_norm"])
