"""Miner: a token-level advantage for groups whose completions are all correct."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from entropy_rl.advantages.baselines import group_normalize
from entropy_rl.advantages.groups import check_group_size, in_groups
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_center, masked_mean
from entropy_rl.types import TokenStats


def miner(group_size: int, gamma: float = 2.0, max_share: float = 0.0015) -> Transform:
    """Miner: an advantage for groups whose completions are all correct, by their surprisal.

    A_ext = `group_normalize` for groups with unequal rewards
    A_int,ᵢₜ = max(0, uᵢ - mean(u)) (1 - π_old(oᵢₜ))^γ,   u = -mean_t log π_old

    for groups whose scored completions are all correct, with u the surprisal of a completion and
    its mean over the group. A_int is scaled by min(1, λ Σ|A_ext| / Σ|A_int|), the sums over the
    tokens of the rollout. Groups that are all wrong get 0.

    Source: Miner, https://arxiv.org/abs/2601.04731, and its code: the command of its README, which
    its configuration files do not repeat. Correct is a reward above 0: the code takes equal rewards
    other than 0 for it, which is the same for rewards of 0 and 1 and not for -1 and 1.

    Args:
      group_size: Completions per prompt (G), at least 2.
      gamma: Exponent γ >= 0 of a token's credit; 0 treats all tokens alike.
      max_share: λ >= 0, the largest sum of A_int as a share of that of A_ext.

    Returns:
      A transform of rewards f32[B, 1] -> f32[B, N] of scope "batch"; 0 at tokens that do not
      count.

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("miner", group_size)
    for name, value in (("gamma", gamma), ("max_share", max_share)):
        require(0 <= value < math.inf, f"miner.{name}", value, "a number >= 0")
    normalize = group_normalize(group_size)

    def mine(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, has_reward = in_groups("miner", group_size, advantages, stats)
        external = jnp.where(stats.mask, normalize(advantages, stats), 0)

        equal = jnp.all(masked_center(rewards, has_reward, axis=1) == 0, axis=1, keepdims=True)
        solved = has_reward & equal & (rewards > 0)
        surprise = masked_center(
            -masked_mean(stats.old_log_probs, stats.mask, axis=1).reshape(rewards.shape),
            has_reward,
            axis=1,
        )
        of_row = jnp.where(solved, jnp.maximum(surprise, 0), 0).reshape(advantages.shape)
        # The upper bound is for rounding, which can leave a log-prob of 0 a hair above 0.
        improbability = -jnp.expm1(jnp.minimum(jnp.where(stats.mask, stats.old_log_probs, 0), 0))
        internal = jnp.where(stats.mask, of_row * improbability**gamma, 0)

        total = jnp.sum(internal)
        limit = max_share * jnp.sum(jnp.abs(external))
        scale = jnp.minimum(1, limit / jnp.where(total > 0, total, 1))
        return external + scale * internal

    return Transform(mine, "batch", reads="rewards", is_baseline=True)
