"""ASPO: the inverse ratio as the weight of tokens with a positive advantage."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.contrib.archer import check_entropy_clip, high_entropy
from entropy_rl.losses.clipping import ratio_of
from entropy_rl.losses.surrogate import ClipMasks, Surrogate
from entropy_rl.types import TokenStats


def aspo(
    low_entropy_clip: float = 0.2,
    high_entropy_clip: float = 0.4,
    quantile: float = 0.8,
    max_weight: float = 3.0,
) -> Surrogate:
    """ASPO: weight 1 / ρ for positive advantages, ρ for negative ones, both with a soft dual clip.

    Aₜ > 0: Lₜ = -Aₜ ρₜ / sg(ρₜ)², no gradient where ρₜ > 1 + εₜ;  -c Aₜ log π(oₜ) where 1/ρₜ > c
    Aₜ < 0: Lₜ = -Aₜ ρₜ,           no gradient where ρₜ < 1 - εₜ;  -c Aₜ log π(oₜ) where ρₜ > c

    Improbable tokens of correct responses are reinforced more, and not less, than probable ones.
    Beyond the bound c a token keeps the gradient of weight c. ε depends on the entropy as in
    `archer`.

    Source: https://arxiv.org/abs/2510.06062, formula and values as in its code,
    https://github.com/wizard-III/Archer2.0 (`compute_policy_loss_archer`).

    Args:
      low_entropy_clip: ε of tokens of low entropy, between 0 and 1.
      high_entropy_clip: ε of tokens of high entropy, between 0 and 1.
      quantile: Level of the quantile that separates them, between 0 and 1.
      max_weight: c > 1.

    Returns:
      A surrogate of scope "sequence". Its masks: `low`, A < 0 and ρ below the range; `high`, A > 0
      and ρ above it; `dual`, weights above c, of either sign.

    Raises:
      ValueError: An argument is out of range.
    """
    check_entropy_clip("aspo", low_entropy_clip, high_entropy_clip, quantile)
    require(max_weight > 1, "aspo.max_weight", max_weight, "a number > 1")

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        clip = jnp.where(high_entropy(stats, quantile), high_entropy_clip, low_entropy_clip)
        ratio, positive = ratio_of(stats), advantages > 0
        low = (advantages < 0) & (ratio < 1 - clip)
        high = positive & (ratio > 1 + clip)
        clipped = jnp.where(low, 1 - clip, jnp.where(high, 1 + clip, ratio))
        constant = jax.lax.stop_gradient(clipped)
        weight = jnp.where(positive, 1 / constant, constant)
        dual = (advantages != 0) & (weight > max_weight)
        token_loss = -advantages * weight * (clipped / constant)
        bounded = -advantages * max_weight * stats.log_probs
        return jnp.where(dual, bounded, token_loss), ClipMasks(low, high, dual)

    return Surrogate(loss, "sequence")
