"""The critic of PPO: a backbone of its own with a linear value head, and its update.

    V(sₜ) = hₜ · w

with hₜ the backbone's last hidden state at sₜ, the prompt and the tokens before t. The head has no
bias, and w starts at zero: every value is then exactly 0, the first advantages are the rewards, and
the first update changes the head alone. Passes are over packed tokens in micro-batches, as those of
the policy, without logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from entropy_rl.advantages import Transform, before_values
from entropy_rl.advantages.returns import lambda_returns
from entropy_rl.config.train import CriticConfig
from entropy_rl.learner.batch import loss_mask, token_stats
from entropy_rl.learner.fold import MicroBatch
from entropy_rl.learner.gradient import GradientFn
from entropy_rl.learner.metrics import mean_over_updates
from entropy_rl.learner.micro_batches import MicroBatches, PredictingHidden
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.update import UpdateFn, apply_gradient, init_state
from entropy_rl.losses.aggregation import counts
from entropy_rl.losses.loss import Loss
from entropy_rl.losses.value import value_loss
from entropy_rl.masked import masked_sum
from entropy_rl.models.lora import Base, on_base
from entropy_rl.types import TURN_REWARDS, CriticState, Params, Policy, TrainBatch, TrainState

ValuesFn = Callable[[Params, TrainBatch], jax.Array]

_HEAD = "value_head"


def init_critic(
    params: Params,
    hidden_size: int,
    optimizer: optax.GradientTransformation,
    constrain: Callable[[Any], Any] | None = None,
) -> CriticState:
    """Build the critic before the first step.

    Args:
      params: Parameters of its backbone, without LM head, or an adapter; they are copied.
      hidden_size: D of the backbone.
      optimizer: The critic's optimizer.
      constrain: As in `init_state`.
    """
    # On the host, so that it fits any mesh of the backbone.
    head = {"kernel": np.zeros(hidden_size, np.float32)}
    state = init_state(params | {_HEAD: head}, optimizer, constrain)
    return CriticState(params=state.params, opt_state=state.opt_state)


def make_values_pass(backbone: Policy, settings: PassSettings = PassSettings()) -> ValuesFn:
    """Build the forward pass `(params, batch) -> values f32[B, N]` over a mini-batch.

    Args:
      backbone: The model whose hidden states are read.
      settings: Micro-batches.

    Returns:
      A pure function, to be jitted by the caller. It computes all rows, with or without a reward.
    """

    def read(params: Params, at: PredictingHidden, rows: TrainBatch) -> tuple[jax.Array]:
        return (jnp.where(at.pack(rows.completion_mask), _values(params, at), 0),)

    def values_pass(params: Params, batch: TrainBatch) -> jax.Array:
        micro_batches = MicroBatches(backbone, batch, batch.completion_mask, settings)
        return micro_batches.map_tokens(read, params, batch, outputs=1)[0]

    return values_pass


def _values(params: Params, at: PredictingHidden) -> jax.Array:
    hidden, kernel = at.hidden.astype(jnp.float32), params[_HEAD]["kernel"]
    return jnp.einsum("...d,d->...", hidden, kernel, precision=jax.lax.Precision.HIGHEST)


def make_critic_gradient(
    backbone: Policy,
    advantage: Transform,
    config: CriticConfig,
    loss: Loss = Loss(),
    settings: PassSettings = PassSettings(),
) -> GradientFn:
    """Build the gradient of the value loss of a mini-batch.

    The targets are the λ-returns with the critic's own λ and the values before the first update.

    Args:
      backbone: The model whose hidden states are read.
      advantage: The policy's. The part of the chain before its first member that requires values
        computes the rewards from recorded statistics.
      config: The section `critic`, of which γ, λ and the clip range are read here.
      loss: The policy's loss, whose aggregation is used.
      settings: Micro-batches.

    Returns:
      A pure function `(params, batch: TrainBatch) -> (gradient, metrics: dict of f32[])`, to be
      jitted.
    """
    make_rewards = before_values(advantage)

    def gradient(params: Params, batch: TrainBatch) -> tuple[Params, dict[str, jax.Array]]:
        mask = loss_mask(batch)
        tokens, sequences = counts(mask)
        rewards = make_rewards(batch.rewards[:, None], token_stats(batch))
        targets = lambda_returns(
            rewards,
            batch.values,
            mask,
            gamma=config.gamma,
            lam=config.lam,
            turn_rewards=batch.extras.get(TURN_REWARDS),
        )
        micro_batches = MicroBatches(backbone, batch, mask, settings)

        def part_loss(params: Params, prefix: Any, part: MicroBatch) -> tuple[jax.Array, Any]:
            rows, targets = part.arrays
            mask = loss_mask(rows)
            at = micro_batches.hidden(params, prefix, part, rows)
            values = at.unpack(_values(params, at))
            per_token, clipped = value_loss(
                values, rows.values, targets, mask, clip_range=config.clip_range
            )
            weights = loss.aggregation_weights(mask, tokens=tokens, sequences=sequences)
            total = jnp.sum(weights * per_token)
            return total, {"loss": total, "clipped": masked_sum(clipped, mask)}

        def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            # Not E[x²] - E[x]², which loses all digits in float32 where the mean is large.
            mean = masked_sum(x, mask) / jnp.maximum(tokens, 1)
            return mean, masked_sum(jnp.square(x - mean), mask) / jnp.maximum(tokens, 1)

        grads, sums = micro_batches.gradient(part_loss, params, (batch, targets))
        target, target_variance = moments(targets)
        error, error_variance = moments(targets - batch.values)
        return grads, {
            "loss": sums["loss"],
            "grad_norm": optax.tree.norm(grads),
            "tokens": tokens,
            "value": masked_sum(batch.values, mask) / jnp.maximum(tokens, 1),
            "return": target,
            "return_variance": target_variance,
            "error": error,
            "error_variance": error_variance,
            "clipped": sums["clipped"] / jnp.maximum(tokens, 1),
        }

    return gradient


def make_critic_update(
    backbone: Policy,
    advantage: Transform,
    optimizer: optax.GradientTransformation,
    config: CriticConfig,
    loss: Loss = Loss(),
    settings: PassSettings = PassSettings(),
) -> UpdateFn:
    """Build the update of the critic on one mini-batch; the rest of the state is unchanged.

    An update whose gradient is not finite, or without a token that has a loss, changes nothing.

    Args:
      backbone: The model whose hidden states are read.
      advantage: The policy's, as in `make_critic_gradient`.
      optimizer: Its state is in `TrainState.critic`.
      config: The section `critic`.
      loss: The policy's loss, whose aggregation is used.
      settings: Micro-batches.

    Returns:
      A jitted function `(state, batch: TrainBatch) -> (state, metrics: dict of f32[])`; the state
      is donated.
    """
    gradient = make_critic_gradient(backbone, advantage, config, loss, settings)

    def update(state: TrainState, batch: TrainBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        critic = state.critic
        with jax.named_scope("critic_gradient"):
            grads, metrics = gradient(critic.params, batch)
        with jax.named_scope("critic_optimizer"):
            params, opt_state = apply_gradient(
                optimizer, grads, critic.params, critic.opt_state, metrics
            )
        state = state.replace(critic=CriticState(params, opt_state))
        return settings.constrained(state), metrics

    return jax.jit(update, donate_argnums=0)


class CriticPrograms(NamedTuple):
    """The compiled functions of a critic.

    Attributes:
      optimizer: Its optimizer.
      values: As in `make_values_pass`.
      update: As in `make_critic_update`.
    """

    optimizer: optax.GradientTransformation
    values: ValuesFn
    update: UpdateFn


def make_critic_programs(
    backbone: Policy,
    advantage: Transform,
    optimizer: optax.GradientTransformation,
    config: CriticConfig,
    loss: Loss,
    settings: PassSettings,
    base: Base | None = None,
) -> CriticPrograms:
    """Build the compiled functions of a critic; arguments as in `make_critic_update`.

    With a base, the critic is an adapter of it and a head of its own.
    """

    def values(backbone: Policy) -> ValuesFn:
        return jax.jit(make_values_pass(backbone, settings))

    def update(backbone: Policy) -> UpdateFn:
        return make_critic_update(backbone, advantage, optimizer, config, loss, settings)

    return CriticPrograms(
        optimizer=optimizer,
        values=on_base(values, backbone, base),
        update=on_base(update, backbone, base, donate=(0,)),
    )


def mean_critic_metrics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Combine the metrics of several updates of the critic, by their names in metrics.jsonl.

    The explained variance 1 - Var(G - V) / Var(G) is that of the values before the first update,
    over all tokens of these updates; 0 if all targets are equal to the precision of float32.

    Args:
      metrics: Of each update, on the host.
    """
    means = mean_over_updates(metrics)
    squares = [
        {name: float(of[name]) ** 2 for name in ("return", "error")} | {"tokens": of["tokens"]}
        for of in metrics
    ]
    square = mean_over_updates(squares)
    # Within the updates and between them.
    variance, unexplained = (
        means[f"{name}_variance"] + square[name] - means[name] ** 2 for name in ("return", "error")
    )
    # A smaller variance is the rounding of float32: all targets are equal.
    explained = 1 - unexplained / variance if variance > 1e-10 * square["return"] else 0.0
    return {
        "value_loss": means["loss"],
        "value": means["value"],
        "explained_variance": explained,
        "value_clipped": means["clipped"],
        "critic_grad_norm": means["grad_norm"],
    }
