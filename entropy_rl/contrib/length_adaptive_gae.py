"""Length-adaptive GAE of VAPO."""

from __future__ import annotations

import jax.numpy as jnp

from entropy_rl.advantages.gae import check_discount, generalized_advantages
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require


def length_adaptive_gae(gamma: float = 1.0, alpha: float = 0.05) -> Transform:
    """Generalized advantages with a λ that goes to 1 with the length of the completion.

    λ = max(0, 1 - 1 / (α |o|)),   |o| the number of tokens

    so that the weights of the δ sum to α |o| for each length. Source: VAPO,
    https://arxiv.org/abs/2504.05118, where the critic's own λ is 1. The bound at 0, for completions
    of fewer than 1 / α tokens, is ours.

    Args:
      gamma: Discount 0 < γ <= 1. In a run it is that of the critic, `critic.gamma`.
      alpha: α > 0.

    Returns:
      As `gae`.

    Raises:
      ValueError: As `gae`.
    """
    check_discount("length_adaptive_gae", gamma=gamma)
    require(alpha > 0, "length_adaptive_gae.alpha", alpha, "a number > 0")
    return generalized_advantages(
        "length_adaptive_gae",
        gamma,
        lambda lengths: jnp.maximum(0, 1 - 1 / (alpha * jnp.maximum(lengths, 1))),
    )
