"""QAE: a quantile of the group as the baseline."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.advantages.groups import check_group_size, in_groups, over_std
from entropy_rl.advantages.transform import Transform
from entropy_rl.types import TokenStats


def qae(group_size: int, quantile: float = 0.4, eps: float = 1e-6) -> Transform:
    """Subtract a quantile of the group's rewards in place of their mean.

    Aᵢ = (rᵢ - Q_K(r)) / (std(r) + ε),   Q_K(r) = min{x : #{j : r_j <= x} >= K n}

    over the n scored rows of the group. With two rewards and a share p of successes this is a gate:
    for p <= 1 - K the failures get 0 and the successes are reinforced; for p > 1 - K it is the
    other way round. Source: QAE, https://arxiv.org/abs/2509.22611. The gate is the paper's; K = 0.4
    and the division by the standard deviation (here of a sample, with ε as in veRL's GRPO) are
    reconstructed.

    Args:
      group_size: Completions per prompt (G), at least 2.
      quantile: Level K, 0 < K < 1.
      eps: Added to the standard deviation.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("qae", group_size)
    if not 0 < quantile < 1:
        raise ValueError(f"qae: quantile={quantile!r} is not allowed; 0 < quantile < 1")
    if not eps >= 0:
        raise ValueError(f"qae: eps={eps!r} is not allowed; eps >= 0")
    # Rounded, or 0.7 * 10 rows would be a hair off 7. There is no row of rank 0.
    ranks = np.array([max(math.ceil(round(quantile * n, 9)), 1) for n in range(group_size + 1)])

    def normalize(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("qae", group_size, advantages, stats)
        ranked = jnp.sort(jnp.where(judged, rewards, jnp.inf), axis=1)
        rank = jnp.asarray(ranks)[jnp.sum(judged, axis=1, keepdims=True)]
        distance = jnp.where(judged, rewards - jnp.take_along_axis(ranked, rank - 1, axis=1), 0)
        return over_std(distance, rewards, judged, eps=eps).reshape(advantages.shape)

    return Transform(normalize, "group")
