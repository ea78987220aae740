"""Updates and validation losses of supervised training: SFT, and losses on pairs such as DPO.

The gradient of either is that of a weighted negative log-likelihood:

    L'(θ) = - Σ w_t log π_θ(x_t | x_<t)           with ∂L'/∂θ = ∂L/∂θ

The weights of SFT are given, divided by their sum over the update. Those of a loss on pairs are
its derivatives -∂L/∂log π(y), which a forward pass over all rows computes first. So a micro-batch
needs no whole pairs, and results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from entropy_rl.learner.fold import MicroBatch
from entropy_rl.learner.micro_batches import MicroBatches
from entropy_rl.learner.optimizer import Optimizer
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.learner.update import apply_gradient, learning_rate_of
from entropy_rl.lm_head.fused_loss import fused_head_loss
from entropy_rl.losses.preference import PreferenceLoss
from entropy_rl.masked import masked_sum
from entropy_rl.types import Params, Policy, TrainState

Metrics = dict[str, jax.Array]


@struct.dataclass
class SupervisedBatch:
    """Rows of an update, right-padded, with the attributes of a `TrainBatch` that passes read.

    For a loss on pairs, row 2p is the chosen and row 2p + 1 the rejected completion of pair p; a
    pair whose rows have no weights does not count.
    """

    ids: jax.Array  # int32[B, T]
    # f32[B, T], the weight of predicting ids[b, t]; 0 in prompts and padding. Pairs read where it
    # is not 0.
    weights: jax.Array
    ref_log_probs: jax.Array | None = None  # f32[B, T - 1]; of the reference policy of pairs

    @property
    def prompt_length(self) -> jax.Array:
        """int32[B]: of the first token, which nothing predicts."""
        return jnp.ones(self.ids.shape[0], jnp.int32)

    @property
    def completion_ids(self) -> jax.Array:
        """int32[B, T - 1]: the other tokens."""
        return self.ids[:, 1:]

    @property
    def completion_mask(self) -> jax.Array:
        """bool[B, T - 1]: those of them that are targets."""
        return self.weights[:, 1:] > 0


def make_supervised_update(
    policy: Policy,
    optimizer: optax.GradientTransformation | Optimizer,
    loss: PreferenceLoss | None = None,
    settings: PassSettings = PassSettings(),
) -> Callable[[TrainState, SupervisedBatch], tuple[TrainState, Metrics]]:
    """Build an update of supervised training.

    Without a loss on pairs, it lowers the negative log-likelihood of the targets of the update:

        L(θ) = - Σ w_t log π_θ(x_t | x_<t) / Σ w_t

    An update whose gradient is not finite, or without a target, changes no parameter.

    Args:
      policy: The model.
      optimizer: Its state is `TrainState.opt_state`.
      loss: A loss on pairs, whose mean over the pairs of the update is lowered.
      settings: Micro-batches and mesh; the temperature must be 1.

    Returns:
      A jitted function `(state, batch) -> (state, metrics: dict of f32[])`; the state is donated.
    """
    weigh = _make_weights(policy, loss, settings)

    def update(state: TrainState, batch: SupervisedBatch) -> tuple[TrainState, Metrics]:
        weights, metrics = weigh(state.params, batch)
        mask, batch = batch.completion_mask, batch.replace(ref_log_probs=None)
        micro_batches = MicroBatches(policy, batch, mask, settings)

        def part_loss(params: Params, prefix: Any, part: MicroBatch) -> tuple[jax.Array, Any]:
            rows, weights = part.arrays
            at = micro_batches.hidden(params, prefix, part, rows)
            total, _, entropy, _ = fused_head_loss(
                at.hidden,
                policy.head(params),
                at.pack(rows.completion_ids),
                at.pack(rows.completion_mask),
                _weighted_nll,
                at.pack(weights),
                mesh=settings.mesh,
            )
            return total, {"loss": total, "entropy": jnp.sum(entropy)}

        grads, sums = micro_batches.gradient(part_loss, state.params, (batch, weights))
        tokens = mask.sum()
        found = {"entropy": sums["entropy"] / jnp.maximum(tokens, 1), "tokens": tokens}
        metrics = {"loss": sums["loss"]} | metrics | found
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics |= learning_rate_of(optimizer, state.opt_state)
        params, opt_state = apply_gradient(optimizer, grads, state.params, state.opt_state, metrics)
        state = state.replace(
            params=params, opt_state=opt_state, step=state.step + 1, updates=state.updates + 1
        )
        return settings.constrained(state), metrics

    return jax.jit(update, donate_argnums=0)


def make_validation(
    policy: Policy, loss: PreferenceLoss | None = None, settings: PassSettings = PassSettings()
) -> Callable[[Params, SupervisedBatch], tuple[Metrics, jax.Array]]:
    """Build the sums of a validation loss, and of the metrics of pairs, over a batch.

    Args:
      policy: The model.
      loss: As in `make_supervised_update`.
      settings: As in `make_supervised_update`.

    Returns:
      A jitted function `(params, batch) -> (sums by name, their divisor)`, of which the sums over
      all batches give the means.
    """
    stats = make_stats_pass(policy, settings)

    def validate(params: Params, batch: SupervisedBatch) -> tuple[Metrics, jax.Array]:
        log_probs, _ = stats(params, batch)
        if loss is None:
            weights = batch.weights[:, 1:]
            return {"loss": -masked_sum(weights * log_probs, weights > 0)}, weights.sum()
        log_probs, tokens = _of_pairs(log_probs, batch)
        return _pair_sums(loss, log_probs, _reference(batch), tokens)

    return jax.jit(validate)


def _make_weights(
    policy: Policy, loss: PreferenceLoss | None, settings: PassSettings
) -> Callable[[Params, SupervisedBatch], tuple[jax.Array, Metrics]]:
    """Build `(params, batch) -> (weights of the targets f32[B, T - 1], metrics)`."""

    def given(params: Params, batch: SupervisedBatch) -> tuple[jax.Array, Metrics]:
        weights = batch.weights[:, 1:]
        total = weights.sum()
        return weights / jnp.where(total > 0, total, 1), {}

    if loss is None:
        return given
    stats = make_stats_pass(policy, settings)

    def of_pairs(params: Params, batch: SupervisedBatch) -> tuple[jax.Array, Metrics]:
        log_probs, tokens = _of_pairs(stats(params, batch)[0], batch)
        reference = _reference(batch)

        def mean(log_probs: jax.Array) -> tuple[jax.Array, Metrics]:
            sums, pairs = _pair_sums(loss, log_probs, reference, tokens)
            means = {name: value / jnp.maximum(pairs, 1) for name, value in sums.items()}
            return means["loss"], means

        slopes, metrics = jax.grad(mean, has_aux=True)(log_probs)
        return jnp.where(batch.completion_mask, -slopes.reshape(-1, 1), 0), metrics

    return of_pairs


def _of_pairs(log_probs: jax.Array, batch: SupervisedBatch) -> tuple[jax.Array, jax.Array]:
    """Return the sum of log-probs f32[P, 2] of the completions of pairs, and their tokens."""
    mask = batch.completion_mask
    sums = jnp.where(mask, log_probs, 0).sum(-1)
    return sums.reshape(-1, 2), mask.sum(-1).reshape(-1, 2)


def _reference(batch: SupervisedBatch) -> jax.Array:
    """Return f32[P, 2]: as `_of_pairs`, of the reference policy."""
    if batch.ref_log_probs is None:
        return jnp.zeros((batch.ids.shape[0] // 2, 2))
    return _of_pairs(batch.ref_log_probs, batch)[0]


def _pair_sums(
    loss: PreferenceLoss, log_probs: jax.Array, reference: jax.Array, tokens: jax.Array
) -> tuple[Metrics, jax.Array]:
    """Return sums over pairs by name, and the number of pairs."""
    losses, rewards = loss(log_probs, reference, tokens)
    counts = (tokens > 0).all(-1)
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    values = {
        "loss": losses,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "reward_margin": chosen - rejected,
        "reward_accuracy": (chosen > rejected).astype(jnp.float32),
    }
    return {name: masked_sum(x, counts) for name, x in values.items()}, counts.sum()


def _weighted_nll(
    log_prob: jax.Array, entropy: jax.Array, weight: jax.Array
) -> tuple[jax.Array, Any]:
    return -weight * log_prob, ()
