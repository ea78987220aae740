"""Advantage shaping by entropy, token by token."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.types import TokenStats


def shape_by_entropy(
    alpha: float = 0.4, kappa: float = 2.0, entropy_source: Literal["current", "old"] = "current"
) -> Transform:
    """Add a bonus for the policy's uncertainty, bounded by the advantage itself.

    A'ₜ = Aₜ + ψ(Hₜ),  ψ(Hₜ) = min(α · sg(Hₜ), |Aₜ| / κ)

    with Hₜ the entropy in nats over the full vocabulary and sg the stop-gradient. Source: Eq. 5-6
    of https://arxiv.org/abs/2506.14758.

    As κ > 1 the bonus never flips a sign, and an advantage of 0 gets none. It works on correct and
    wrong rows alike: uncertain tokens of correct ones are reinforced up to 1 + 1/κ times as much,
    those of wrong ones are punished down to 1 - 1/κ times as much. There is no gradient through H.
    Without the bound, and on-policy, the bonus would be a baseline that depends on the state alone
    and would cancel in expectation: the effect comes from the bound.

    Args:
      alpha: Weight α >= 0 of the entropy: 0.4 for GRPO and 0.1 for PPO in the paper (§4).
      kappa: Bound κ > 1 of the bonus; 2 in the paper (§4).
      entropy_source: "current" for the entropy of the policy that is being updated, as in the
        paper, so that it is another one in each update on a rollout; "old" for that before the
        first update.

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope "token"; tokens that do not count get
      no bonus.

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 <= alpha < math.inf, "shape_by_entropy.alpha", alpha, "a number >= 0")
    require(
        kappa > 1, "shape_by_entropy.kappa", kappa, "a number > 1, so that the bonus flips no sign"
    )
    require(
        entropy_source in ("current", "old"),
        "shape_by_entropy.entropy_source",
        entropy_source,
        "current or old",
    )

    def shape(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        entropy = stats.entropy if entropy_source == "current" else stats.old_entropy
        entropy = jnp.where(stats.mask, jax.lax.stop_gradient(entropy), 0)
        # The lower bound is for rounding, which can leave an entropy of 0 a hair below 0.
        return advantages + jnp.clip(alpha * entropy, 0, jnp.abs(advantages) / kappa)

    return Transform(shape, "token")
