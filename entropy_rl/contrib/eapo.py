"""EAPO: larger advantages where the entropy is above its mean."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_center, masked_var
from entropy_rl.types import TokenStats


def eapo(
    alpha: float = 0.2, phi: float = 2.0, statistics: Literal["batch", "sequence"] = "batch"
) -> Transform:
    """EAPO: scale advantages up at tokens of high entropy and down at tokens of low entropy.

    A'ₜ = Aₜ + α sign(Aₜ) sg(clip(Zₜ, -|Aₜ| / φ, |Aₜ| / φ)),   Zₜ = (Hₜ - μ_H) / σ_H

    with Hₜ the entropy in nats of the policy that is being updated and sg the stop-gradient. Unlike
    `shape_by_entropy` it scales correct and wrong sequences alike. An advantage of 0 stays
    0, and as α < φ none changes its sign.

    Source: EAPO, https://arxiv.org/abs/2604.11056, from a summary of the paper. Over which tokens μ
    and σ are taken was not found, nor which standard deviation: the whole mini-batch and that of a
    population are reconstructed.

    Args:
      alpha: Weight 0 <= α < φ of the bonus.
      phi: Bound φ > 0 of the bonus.
      statistics: "batch" for μ and σ over the tokens of the mini-batch, "sequence" for those of the
        sequence.

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope `statistics`; tokens that do not
      count get no bonus.

    Raises:
      ValueError: An argument is out of range.
    """
    require(0 < phi < math.inf, "eapo.phi", phi, "a number > 0")
    require(
        0 <= alpha < phi,
        "eapo.alpha",
        alpha,
        f"a number >= 0 and < phi ({phi}), so that the bonus flips no sign",
    )
    require(statistics in ("batch", "sequence"), "eapo.statistics", statistics, "batch or sequence")
    axis = None if statistics == "batch" else 1

    def amplify(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        entropy = jax.lax.stop_gradient(stats.entropy)
        std = jnp.sqrt(masked_var(entropy, stats.mask, axis=axis, keepdims=True))
        z = masked_center(entropy, stats.mask, axis=axis) / jnp.where(std > 0, std, 1)
        bound = jnp.abs(advantages) / phi
        return advantages + alpha * jnp.sign(advantages) * jnp.clip(z, -bound, bound)

    return Transform(amplify, statistics, needs_policy=statistics == "batch")
