"""QAE: a quantile of the group as the baseline."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.advantages.groups import group_transform, over_std
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.types import TokenStats


def qae(group_size: int, quantile: float = 0.4, eps: float = 1e-6) -> Transform:
    """QAE: subtract a quantile of the group's rewards in place of their mean.

    Aᵢ = (rᵢ - Q_K(r)) / (std(r) + ε),   Q_K(r) = min{x : #{j : r_j <= x} >= K n}

    over the n scored completions of the group. With rewards of two values and a fraction p of
    successes this is a gate: for p <= 1 - K the failures get 0 and the successes a positive
    advantage; for p > 1 - K the successes get 0 and the failures a negative one.

    Source: https://arxiv.org/abs/2509.22611. K = 0.4 and the division by the standard deviation of
    veRL's GRPO (of a sample, ε = 1e-6) are confirmed by the README of the authors' code,
    https://github.com/junkangwu/QAE. That code uses `torch.quantile`, which interpolates between
    rewards; the quantile here is the paper's, and is always one of the rewards.

    Args:
      group_size: Completions per prompt (G), at least 2.
      quantile: Level K, 0 < K < 1.
      eps: Added to the standard deviation.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    require(0 < quantile < 1, "qae.quantile", quantile, "a number > 0 and < 1")
    require(eps >= 0, "qae.eps", eps, "a number >= 0")
    # Rounded, as 0.7 * 10 is not exactly 7 in floating point. Ranks begin at 1.
    ranks = np.array([max(math.ceil(round(quantile * n, 9)), 1) for n in range(group_size + 1)])

    def normalize(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        ranked = jnp.sort(jnp.where(has_reward, rewards, jnp.inf), axis=1)
        rank = jnp.asarray(ranks)[jnp.sum(has_reward, axis=1, keepdims=True)]
        distance = jnp.where(has_reward, rewards - jnp.take_along_axis(ranked, rank - 1, axis=1), 0)
        return over_std(distance, rewards, has_reward, eps=eps)

    return group_transform("qae", group_size, normalize)
