"""The optimizer that a config describes."""

from __future__ import annotations

import dataclasses

import optax

from entropy_rl.config.train import CriticConfig, OptimizerConfig


def make_optimizer(
    config: OptimizerConfig, *, decay_updates: int | None = None, final_rate: float = 1.0
) -> optax.GradientTransformation:
    """AdamW behind a clip by global norm.

    Args:
      config: The `optimizer` section. The learning rate rises linearly over `warmup_updates`.
      decay_updates: The update, counted from 1, that has `final_rate` of it, at the end of a
        cosine; None keeps it constant.
      final_rate: Share of the learning rate at the end.

    Returns:
      The transformation; its state is part of the training state.
    """
    # The first update already moves: 1/n, 2/n, ... n/n of the rate. No warm-up is one of a single
    # update.
    warmup_updates = max(1, config.warmup_updates)
    if decay_updates is None:
        after = optax.constant_schedule(config.learning_rate)
    else:
        steps = max(1, decay_updates - warmup_updates)
        after = optax.cosine_decay_schedule(config.learning_rate, steps, alpha=final_rate)
    rate = after
    if warmup_updates > 1:
        first = config.learning_rate / warmup_updates
        warmup = optax.linear_schedule(first, config.learning_rate, warmup_updates - 1)
        rate = optax.join_schedules([warmup, after], [warmup_updates - 1])
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mu_dtype=config.first_moment_dtype,
        ),
    )


def critic_optimizer(config: OptimizerConfig, critic: CriticConfig) -> optax.GradientTransformation:
    """Build the critic's AdamW: the policy's with its own learning rate, warm-up and clip."""
    names = ("learning_rate", "warmup_updates", "max_grad_norm")
    own = {name: getattr(critic, name) for name in names}
    return make_optimizer(dataclasses.replace(config, **own))
