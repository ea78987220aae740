"""UCPO: a larger advantage for correct completions that were improbable."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.advantages.groups import group_transform
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_mean
from entropy_rl.types import TokenStats

# Smallest probability of a completion among the correct ones, before its inverse is taken.
_SMALLEST_SHARE = 1e-6


def ucpo(group_size: int, tau: float = 0.2) -> Transform:
    """UCPO: redistribute the advantage of a group's correct completions to improbable ones.

    Aᵢ' = Aᵢ · n_c ((1 - τ) / n_c + τ vᵢ / Σ_j v_j),   v = 1 / q,   q = softmax(mean_t log π_old)

    over the n_c scored completions of the group with A > 0; the others do not change. If all
    correct completions have the same advantage, as with rewards of two values, the sum of their
    advantages does not change. The log-probs are those before the first update on a rollout.

    Source: UCPO, https://arxiv.org/abs/2605.00365, and its code: τ as in its scripts, v bounded by
    10⁶. There it follows `group_normalize` with ε = 1e-8. Its term for wrong rows, off in the
    scripts, is not here.

    Args:
      group_size: Completions per prompt (G), at least 2.
      tau: 0 <= τ <= 1; 0 is the identity.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group", to be chained after a group baseline.

    Raises:
      ValueError: As `group_normalize`.
    """
    require(0 <= tau <= 1, "ucpo.tau", tau, "a number from 0 to 1")

    def reweight(values: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        correct = has_reward & (values > 0)
        log_prob = masked_mean(stats.old_log_probs, stats.mask, axis=1).reshape(values.shape)
        # Not -inf, which makes NaN in a group without a correct completion.
        share = jax.nn.softmax(jnp.where(correct, log_prob, jnp.finfo(log_prob.dtype).min), axis=1)
        inverse = jnp.where(correct, 1 / jnp.maximum(share, _SMALLEST_SHARE), 0)
        total = jnp.sum(inverse, axis=1, keepdims=True)
        n = jnp.sum(correct, axis=1, keepdims=True)
        weight = (1 - tau) + tau * n * inverse / jnp.where(total > 0, total, 1)
        return jnp.where(correct, values * weight, values)

    return group_transform("ucpo", group_size, reweight, reads="advantages")
