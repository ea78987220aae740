"""Entropy control at every update: a variant of Skywork-OR1's adaptive entropy control."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.losses.controller import BatchSummary, Coefficients, Controller
from entropy_rl.losses.controllers import ENTROPY_COEF, check_entropy_control


def per_update_adaptive_entropy(
    target: float = 0.2,
    delta: float = 1e-4,
    initial: float = 0.0,
    minimum: float = 0.0,
    maximum: float = 5e-3,
) -> Controller:
    """Entropy coefficient with a target entropy, adapted at every update before it is used.

    c ← clip(c + δ, c_min, c_max) if H < H*, else clip(c - δ, c_min, c_max)
    the loss has -c H 1[H < H*]

    with H the mean full-vocabulary entropy of the mini-batch from before the first update on its
    rollout. A variant of `adaptive_entropy`, which is the method of Skywork-OR1: that one adapts
    once for each rollout, after its updates, and by the log-probs of the sampled tokens.

    Args:
      target: H*, nats.
      delta: δ > 0.
      initial: c before the first update, within the bounds.
      minimum: c_min ≥ 0.
      maximum: c_max ≥ c_min.

    Returns:
      A controller of c f32[], with the coefficient `entropy_coef`.

    Raises:
      ValueError: An argument is out of range.
    """
    who = "per_update_adaptive_entropy"
    check_entropy_control(who, target, delta, initial, minimum, maximum)

    def update(coefficient: jax.Array, summary: BatchSummary) -> tuple[jax.Array, Coefficients]:
        below = summary.entropy < target
        coefficient = jnp.clip(coefficient + jnp.where(below, delta, -delta), minimum, maximum)
        return coefficient, {ENTROPY_COEF: jnp.where(below, coefficient, 0)}

    return Controller(lambda: jnp.float32(initial), update)
