"""GTPO and GRPO-S: rewards shaped by the entropy of tokens and of sequences.

Both take rewards f32[B, 1], of which only the sign is read: correct is a reward above 0. They
replace a baseline, and their advantages are not 0 where all rewards of a group are equal. The
entropy is that of the policy before the first update on a rollout. Source: the code of
https://github.com/pixas/Miner, by other authors; the text of the paper has not been compared.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from entropy_rl.advantages.baselines import whiten
from entropy_rl.advantages.groups import check_group_size, group_transform, in_groups, over_std
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_center, masked_mean, masked_sum
from entropy_rl.types import TokenStats

_EPS = 1e-6  # beside every divisor


def gtpo(group_size: int) -> Transform:
    """GTPO: rewards of tokens by their fraction of the group's entropy at a position.

    w⁺ᵢₜ = dₜ Hᵢₜ / (ε + Σ_k H_kₜ),   w⁻ᵢₜ = hₜ Hᵢₜ⁻¹ / (ε + Σ_k H_kₜ⁻¹)
    A⁺ = whiten(w⁺),   A⁻ = -whiten(w⁻)

    with ε = 1e-6, which is added to H in H⁻¹ too, and the sums over the dₜ correct, or hₜ wrong,
    scored completions of the group that have a token t. `whiten` is over all correct, or all wrong,
    tokens of the rollout. The rewards of the source are α₁ + α₂ w⁺ and -α₁ - α₂ w⁻; whitening
    removes α₁ and α₂, which therefore are not arguments. The advantages of correct tokens have
    mean 0, and so have those of wrong ones. Where ΣH ≪ ε, w⁺ is near 0 and A⁺ is negative.

    Source: GTPO, https://arxiv.org/abs/2508.04349, as in the code that this module names.

    Args:
      group_size: Completions per prompt (G), at least 2.

    Returns:
      A transform of rewards f32[B, 1] -> f32[B, N] of scope "batch"; 0 at tokens that do not
      count.

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("gtpo", group_size)
    standardize = whiten()

    def reward(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        in_groups("gtpo", group_size, advantages, stats)
        correct, wrong = stats.mask & (advantages > 0), stats.mask & ~(advantages > 0)
        entropy = _recorded_entropy(stats)

        def shares(weights: jax.Array, among: jax.Array) -> jax.Array:
            groups = (-1, group_size, among.shape[1])
            return _shares(weights.reshape(groups), among.reshape(groups)).reshape(among.shape)

        of_correct = standardize(shares(entropy, correct), stats.replace(mask=correct))
        of_wrong = standardize(shares(1 / (entropy + _EPS), wrong), stats.replace(mask=wrong))
        return of_correct - of_wrong

    return Transform(reward, "batch", reads="rewards", is_baseline=True)


def grpo_s(group_size: int, beta_1: float = 1.0, beta_2: float = 0.1) -> Transform:
    """GRPO-S: rewards of sequences by their fraction of the group's entropy, then GRPO.

    r⁺ᵢ = β₁ + β₂ n⁺ H̄ᵢ / Σ_k H̄_k,   r⁻ᵢ = -β₁ - β₂ n⁻ H̄ᵢ⁻¹ / Σ_k H̄_k⁻¹,   A = (r - mean(r)) /
    (std(r) + ε)

    with H̄ the mean entropy of a row, and the sums over the n⁺ correct, or n⁻ wrong, scored rows of
    the group.

    Source: GRPO-S, https://arxiv.org/abs/2508.04349, formula, β₁ and β₂ as in the code that this
    module names.

    Args:
      group_size: Completions per prompt (G), at least 2.
      beta_1: Weight β₁ >= 0 of the outcome.
      beta_2: Weight β₂ >= 0 of the entropy.

    Returns:
      A transform of rewards f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    for name, value in (("beta_1", beta_1), ("beta_2", beta_2)):
        require(0 <= value < math.inf, f"grpo_s.{name}", value, "a number >= 0")

    def reward(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        correct, wrong = has_reward & (rewards > 0), has_reward & ~(rewards > 0)
        entropy = masked_mean(_recorded_entropy(stats), stats.mask, axis=1).reshape(rewards.shape)
        shaped = jnp.where(
            correct,
            beta_1 + beta_2 * _shares(entropy, correct),
            -beta_1 - beta_2 * _shares(1 / (entropy + _EPS), wrong),
        )
        centered = masked_center(shaped, has_reward, axis=1)
        return over_std(centered, shaped, has_reward, eps=_EPS)

    return group_transform("grpo_s", group_size, reward, reads="rewards")


def _recorded_entropy(stats: TokenStats) -> jax.Array:
    # The lower bound is for rounding, which can leave an entropy of 0 a hair below 0.
    return jnp.maximum(jnp.where(stats.mask, stats.old_entropy, 0), 0)


def _shares(weights: jax.Array, among: jax.Array) -> jax.Array:
    """n wᵢ / Σ_k w_k over the n rows of a group, axis 1, that are `among`, and 0 elsewhere.

    1 on average where Σ_k w_k is far above ε.
    """
    total = masked_sum(weights, among, axis=1, keepdims=True)
    n = jnp.sum(among, axis=1, keepdims=True)
    return jnp.where(among, n * weights / (total + _EPS), 0)
