"""The critic of PPO: a backbone of its own with a linear value head, and one update of it.

    V(sₜ) = hₜ · w        hₜ the backbone's last hidden state at sₜ, the prompt and the tokens
    before t

The head has no bias, and w begins at zero: every value is then exactly 0 and no key is needed, the
first advantages are the rewards as they are, and the first update moves the head alone. There is no
temperature. The frame is that of the policy's passes: live tokens only, in parts, and nothing of
the size of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from entropy_rl.advantages import NotYetKnown, Transform, before_values
from entropy_rl.advantages.returns import lambda_returns
from entropy_rl.config.train import CriticConfig, TrainConfig
from entropy_rl.distributed.sharding import Placement, row_shards
from entropy_rl.learner.metrics import mean_over_updates
from entropy_rl.learner.micro_batches import BatchParts, PredictingHidden
from entropy_rl.learner.optimizer import critic_optimizer
from entropy_rl.learner.update import (
    GradientFn,
    UpdateFn,
    apply_gradient,
    init_state,
    loss_mask,
    token_stats,
)
from entropy_rl.losses.policy import aggregation_weights, counts, value_loss
from entropy_rl.masked import masked_sum
from entropy_rl.types import CriticState, Params, Policy, TrainBatch, TrainState

ValuesFn = Callable[[Params, TrainBatch], jax.Array]

_HEAD = "value_head"


def init_critic(
    params: Params,
    hidden_size: int,
    optimizer: optax.GradientTransformation,
    constrain: Callable[[Any], Any] | None = None,
) -> CriticState:
    """The critic before the first step.

    Args:
      params: Those of its backbone, of which a copy is made; a head over the vocabulary is not
        needed.
      hidden_size: Of the backbone.
      optimizer: The critic's optimizer.
      constrain: As of `make_gradient`.
    """
    # On the host: a part of whatever mesh the backbone lies on.
    head = {"kernel": np.zeros(hidden_size, np.float32)}
    state = init_state(params | {_HEAD: head}, optimizer, constrain)
    return CriticState(params=state.params, opt_state=state.opt_state)


def make_values_pass(
    backbone: Policy,
    *,
    max_tokens_per_micro_batch: int | None = None,
    group_size: int | None = None,
    mesh: Mesh | None = None,
) -> ValuesFn:
    """Builds the forward-only pass `(params, batch) -> values f32[B, N]` over a whole mini-batch.

    Args:
      backbone: The model whose hidden states are read.
      max_tokens_per_micro_batch: As of `make_gradient`.
      group_size: As of `make_gradient`.
      mesh: As of `make_gradient`.

    Returns:
      A function of arrays, to be jitted by the caller; it looks at every row, judged or not.
    """
    shards = row_shards(mesh)

    def read(params: Params, at: PredictingHidden, rows: TrainBatch) -> tuple[jax.Array]:
        return (jnp.where(at.pack(rows.completion_mask), _values(params, at), 0),)

    def values_pass(params: Params, batch: TrainBatch) -> jax.Array:
        parts = BatchParts(
            backbone, batch, batch.completion_mask, max_tokens_per_micro_batch, group_size, shards
        )
        return parts.map_tokens(read, params, batch, outputs=1)[0]

    return values_pass


def _values(params: Params, at: PredictingHidden) -> jax.Array:
    hidden, kernel = at.hidden.astype(jnp.float32), params[_HEAD]["kernel"]
    return jnp.einsum("...d,d->...", hidden, kernel, precision=jax.lax.Precision.HIGHEST)


def make_critic_gradient(
    backbone: Policy,
    advantage: Transform,
    config: CriticConfig,
    aggregation: str = "token-mean",
    *,
    max_tokens_per_micro_batch: int | None = None,
    group_size: int | None = None,
    max_new_tokens: int | None = None,
    mesh: Mesh | None = None,
    constrain: Callable[[Any], Any] | None = None,
) -> GradientFn:
    """Builds the gradient of the value loss of one mini-batch.

    The targets are the λ-returns with the critic's own λ and the values from before the first
    update.

    Args:
      backbone: The model whose hidden states are read.
      advantage: The policy's; what stands in the chain before its first member that reads values
        makes the rewards, from what was recorded.
      config: The `critic` section, of which γ, λ and the clip range are read here.
      aggregation: How token losses become one number, as in the policy's loss.
      max_tokens_per_micro_batch: As of `make_gradient`, and so are the others.
      group_size: See there.
      max_new_tokens: See there.
      mesh: See there.
      constrain: See there.

    Returns:
      A function `(params, batch: TrainBatch) -> (gradient, metrics: dict of f32[])`, to be jitted.

    Raises:
      ValueError: If the aggregation needs `max_new_tokens` and it is not given.
    """
    if max_new_tokens is None and aggregation == "constant":
        raise ValueError("make_critic_gradient: the aggregation 'constant' needs max_new_tokens")
    shards = row_shards(mesh)
    constrain = constrain or (lambda tree: tree)
    make_rewards, unknown = before_values(advantage), NotYetKnown()

    def gradient(params: Params, batch: TrainBatch) -> tuple[Params, dict[str, jax.Array]]:
        learned = loss_mask(batch)
        tokens, sequences = counts(learned)
        rewards = make_rewards(batch.rewards[:, None], token_stats(batch, unknown, unknown))
        targets = lambda_returns(rewards, batch.values, learned, gamma=config.gamma, lam=config.lam)
        parts = BatchParts(backbone, batch, learned, max_tokens_per_micro_batch, group_size, shards)

        def part_loss(params, prefix, of_batch):
            part, targets = of_batch.arrays
            mask = loss_mask(part)
            at = parts.hidden(params, prefix, of_batch, part)
            values = at.unpack(_values(params, at))
            per_token, clipped = value_loss(
                values, part.values, targets, mask, clip_range=config.clip_range
            )
            weights = aggregation_weights(
                mask, aggregation, tokens=tokens, sequences=sequences, max_tokens=max_new_tokens
            )
            total = jnp.sum(weights * per_token)
            sums = {
                "value": part.values,
                "return": targets,
                "return_square": jnp.square(targets),
                "error_square": jnp.square(targets - part.values),
                "clipped": clipped,
            }
            return total, {"loss": total} | {name: masked_sum(x, mask) for name, x in sums.items()}

        grads, sums = parts.gradient(part_loss, params, (batch, targets), constrain)
        metrics = {
            "loss": sums.pop("loss"),
            "grad_norm": optax.global_norm(grads),
            "tokens": tokens,
        }
        return grads, metrics | {name: x / jnp.maximum(tokens, 1) for name, x in sums.items()}

    return gradient


def make_critic_update(
    backbone: Policy,
    advantage: Transform,
    optimizer: optax.GradientTransformation,
    config: CriticConfig,
    aggregation: str = "token-mean",
    **settings: Any,
) -> UpdateFn:
    """Builds the update of the critic on one mini-batch; nothing else of the state changes.

    An update whose gradient is not finite, or without a judged token, leaves the critic alone.

    Args:
      backbone: The model whose hidden states are read.
      advantage: As of `make_critic_gradient`.
      optimizer: Its state lives in `TrainState.critic`.
      config: As of `make_critic_gradient`.
      aggregation: As of `make_critic_gradient`.
      **settings: The others of `make_critic_gradient`.

    Returns:
      A jitted function `(state, batch: TrainBatch) -> (state, metrics: dict of f32[])`; the state
      is donated.
    """
    gradient = make_critic_gradient(backbone, advantage, config, aggregation, **settings)
    constrain = settings.get("constrain") or (lambda tree: tree)

    def update(state: TrainState, batch: TrainBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        critic = state.critic
        with jax.named_scope("critic_gradient"):
            grads, metrics = gradient(critic.params, batch)
        with jax.named_scope("critic_optimizer"):
            params, opt_state = apply_gradient(
                optimizer, grads, critic.params, critic.opt_state, metrics
            )
        return constrain(state.replace(critic=CriticState(params, opt_state))), metrics

    return jax.jit(update, donate_argnums=0)


class CriticPrograms(NamedTuple):
    """The compiled parts of a step that belong to a critic."""

    optimizer: optax.GradientTransformation
    values: ValuesFn
    update: UpdateFn


def make_critic_programs(
    config: TrainConfig, backbone: Policy, advantage: Transform, placement: Placement
) -> CriticPrograms:
    """Builds what a step with a critic runs on the device besides."""
    settings = critic_settings(config) | dict(mesh=placement.mesh)
    optimizer = critic_optimizer(config)
    return CriticPrograms(
        optimizer=optimizer,
        values=jax.jit(make_values_pass(backbone, **settings)),
        update=make_critic_update(
            backbone,
            advantage,
            optimizer,
            config.critic,
            config.loss.aggregation,
            max_new_tokens=config.rollout.max_new_tokens,
            constrain=placement.constrain,
            **settings,
        ),
    )


def critic_settings(config: TrainConfig) -> dict[str, Any]:
    """What a config says to `make_values_pass`."""
    batching = config.batching
    return dict(
        max_tokens_per_micro_batch=config.critic.max_tokens_per_micro_batch
        or batching.max_tokens_per_micro_batch,
        group_size=config.rollout.group_size if batching.share_prompts else None,
    )


def mean_critic_metrics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of several updates of the critic as one, by their names in metrics.jsonl.

    The explained variance 1 - Var(G - V) / Var(G) is that of the values before the first update,
    over all judged tokens of these updates; 0 where all targets are equal.

    Args:
      metrics: What the updates returned, on the host.
    """
    means = mean_over_updates(metrics)
    variance = means["return_square"] - means["return"] ** 2
    unexplained = means["error_square"] - (means["return"] - means["value"]) ** 2
    # Below it, what is left of the float32 sums of equal targets is rounding.
    explained = 1 - unexplained / variance if variance > 1e-6 * means["return_square"] else 0.0
    return {
        "value_loss": means["loss"],
        "value": means["value"],
        "explained_variance": explained,
        "value_clipped": means["clipped"],
        "critic_grad_norm": means["grad_norm"],
    }
