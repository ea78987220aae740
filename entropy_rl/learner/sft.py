"""One jitted step of supervised training (SFT) on weighted tokens."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from entropy_rl.learner.optimizer import Optimizer
from entropy_rl.learner.update import learning_rate_of
from entropy_rl.lm_head.log_probs import log_prob_and_entropy
from entropy_rl.types import Policy, TrainState


def make_supervised_step(
    policy: Policy, optimizer: optax.GradientTransformation | Optimizer
) -> Callable:
    """Builds the step that lowers the weighted cross-entropy.

        L(θ) = - Σ w_t log π_θ(x_t | x_<t) / Σ w_t

    Args:
      policy: The model.
      optimizer: Its optimizer.

    Returns:
      A jitted function `(state, ids int32[B, T], weights f32[B, T]) -> (state, metrics)`, where
      weights[b, t] is the weight of predicting ids[b, t]; the state is donated.
    """

    def loss_fn(params, ids, weights):
        hidden = policy.apply(params, ids[:, :-1])
        targets, weights = ids[:, 1:], weights[:, 1:]
        log_probs, entropy = log_prob_and_entropy(hidden, policy.head(params), targets, weights > 0)
        total = weights.sum()
        return -(weights * log_probs).sum() / total, (weights * entropy).sum() / total

    def step(state: TrainState, ids: jax.Array, weights: jax.Array) -> tuple[TrainState, dict]:
        (loss, entropy), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, ids, weights
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {"loss": loss, "entropy": entropy, "grad_norm": optax.global_norm(grads)}
        metrics |= learning_rate_of(optimizer, state.opt_state)
        state = state.replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            step=state.step + 1,
            updates=state.updates + 1,
        )
        return state, metrics

    return jax.jit(step, donate_argnums=0)
