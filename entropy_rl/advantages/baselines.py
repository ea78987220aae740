"""Baselines: transforms that compare a reward with others, of its group or of the rollout.

The group baselines take one reward for each sequence, f32[B, 1]; sequence b is of group b // G.
Statistics are over the scored sequences (`has_reward`): a sequence without a reward changes no
mean, and its own advantage is 0. The only scored sequence of a group has the advantage 0 as well
(veRL keeps its raw reward instead). Where all rewards of a group are equal, the advantage is
exactly 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.advantages.groups import group_transform, in_groups, over_std
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_center, masked_mean, masked_var
from entropy_rl.types import TokenStats


def group_normalize(group_size: int, eps: float = 1e-6, ddof: int = 1) -> Transform:
    """Standardize the reward within its group.

    Aᵢ = (rᵢ - mean(r)) / (std(r) + ε), over the scored completions of the group.

    Source: GRPO, https://arxiv.org/abs/2402.03300, §4.1.2; Eq. 3 of
      https://arxiv.org/abs/2506.14758.
    Neither says which standard deviation; ddof = 1 and ε = 1e-6 are veRL's.

    Args:
      group_size: Completions per prompt (G), at least 2.
      eps: Added to the standard deviation.
      ddof: 1 for the standard deviation of a sample, 0 for that of a population.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: An argument is out of range; when called: B is no multiple of G, or the input is
        not [B, 1].
    """
    require(eps >= 0, "group_normalize.eps", eps, "a number >= 0")
    require(ddof in (0, 1), "group_normalize.ddof", ddof, "0 or 1")

    def normalize(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        centered = masked_center(rewards, has_reward, axis=1)
        return over_std(centered, rewards, has_reward, eps=eps, ddof=ddof)

    return group_transform("group_normalize", group_size, normalize)


def group_center(group_size: int) -> Transform:
    """Subtract the group's mean reward: Aᵢ = rᵢ - mean(r), over its scored completions.

    Without the division by the standard deviation, prompts that are nearly always or nearly never
    solved get no extra weight. Source: Dr. GRPO, https://arxiv.org/abs/2503.20783, where the loss
    is divided by a constant in turn (`loss.aggregation: constant`).

    Args:
      group_size: Completions per prompt (G), at least 2.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """

    def center(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        return masked_center(rewards, has_reward, axis=1)

    return group_transform("group_center", group_size, center, shifts=True)


def rloo(group_size: int) -> Transform:
    """RLOO: subtract the mean reward of the other completions of the group (leave one out).

    Aᵢ = rᵢ - mean(r_j, j ≠ i) = n / (n - 1) · (rᵢ - mean(r)), over the n scored completions
    of the group.

    The baseline of a completion does not depend on it, so the policy gradient stays unbiased.
    Source: RLOO, https://arxiv.org/abs/2402.14740.

    Args:
      group_size: Completions per prompt (G), at least 2.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """

    def leave_out(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        n = jnp.sum(has_reward, axis=1, keepdims=True)
        # A single scored sequence is its own mean: max() replaces 1 / 0, and is multiplied by 0.
        return masked_center(rewards, has_reward, axis=1) * n / jnp.maximum(n - 1, 1)

    return group_transform("rloo", group_size, leave_out, shifts=True)


def maxrl(group_size: int) -> Transform:
    """MaxRL: subtract the group's mean reward and divide by it.

    Aᵢ = (rᵢ - mean(r)) / mean(r), over the scored completions of the group; 0 where the mean is 0

    With rewards of 0 and 1 it weights a prompt by 1 / p, p its success rate, as the gradient of
    log p does. Source: https://arxiv.org/abs/2602.02710; its code adds 1e-6 to the divisor.

    Args:
      group_size: Completions per prompt (G), at least 2.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group". It requires rewards >= 0: with -1 and 1,
      say, the mean is no success rate, and the division could flip signs. A run whose `reward`,
      `rewards` or penalties can make a negative one is refused; where a task or a reward of your
      own does, its group gets NaN, so that the update is counted as not finite and not applied.

    Raises:
      ValueError: As `group_normalize`.
    """

    def divide(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        mean = masked_mean(rewards, has_reward, axis=1, keepdims=True)
        advantages = masked_center(rewards, has_reward, axis=1) / jnp.where(mean > 0, mean, 1)
        negative = jnp.any(has_reward & (rewards < 0), axis=1, keepdims=True)
        return jnp.where(has_reward & negative, jnp.nan, jnp.where(mean > 0, advantages, 0))

    return group_transform("maxrl", group_size, divide, reads="nonnegative rewards")


def opo(group_size: int) -> Transform:
    """OPO: subtract the length-weighted mean reward of the group.

    Aᵢ = rᵢ - Σ_j |o_j| r_j / Σ_j |o_j|, over the scored completions of the group

    with |o| the number of tokens. It is the baseline of minimum variance if the squared norm of a
    completion's gradient is proportional to its length. Source: OPO,
    https://arxiv.org/abs/2505.23585.

    Args:
      group_size: Completions per prompt (G), at least 2.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """

    def center(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        lengths = jnp.sum(stats.mask, axis=1).reshape(rewards.shape)
        # From the plain mean, so that equal rewards are exact zeros before they are weighted.
        centered = masked_center(rewards, has_reward, axis=1)
        weighted = jnp.sum(lengths * centered, axis=1, keepdims=True)
        total = jnp.maximum(jnp.sum(lengths, axis=1, keepdims=True), 1)
        return jnp.where(has_reward, centered - weighted / total, 0)

    return group_transform("opo", group_size, center, shifts=True)


def gpg(group_size: int, eps: float = 1e-5) -> Transform:
    """GPG: subtract the group's mean reward, and divide by the fraction of groups with contrast.

    Aᵢ = (rᵢ - mean(r)) / (#{groups with unequal rewards} / #{groups} + ε)

    with the mean over the scored completions of the group, and the counts over the groups of the
    rollout that have a scored completion. Groups of equal rewards have no gradient; the factor
    compensates for them. Source: GPG, https://arxiv.org/abs/2504.02546, factor and ε as in the
    authors' code, https://github.com/AMAP-ML/GPG (`grpo_trainer.py`), with its F_norm = 1; there
    the loss has the aggregation "sequence-mean". veRL's `gpg` has another factor, the inverse
    fraction of nonzero rewards.

    Args:
      group_size: Completions per prompt (G), at least 2.
      eps: Added to the fraction.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "batch".

    Raises:
      ValueError: As `group_normalize`.
    """
    require(eps >= 0, "gpg.eps", eps, "a number >= 0")

    def center(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        centered = masked_center(rewards, has_reward, axis=1)
        groups = jnp.sum(jnp.any(has_reward, axis=1))
        contrast = jnp.sum(jnp.any(centered != 0, axis=1))
        # Without contrast all are 0, and the 1 only avoids 0 / 0.
        fraction = jnp.where(contrast > 0, contrast / jnp.maximum(groups, 1) + eps, 1)
        return centered / fraction

    return group_transform("gpg", group_size, center, scope="batch")


def remax() -> Transform:
    """ReMax: subtract the reward of the greedy completion of the same prompt, A = r - r(greedy).

    The greedy completion has the most probable token at every position. A run whose advantage has
    this member samples one beside the G completions of each prompt, and does not train on it. If it
    has no reward, the completions of its prompt have no baseline and are left out of the loss. A
    group size of 1 is sufficient. Dynamic sampling and exploration do not use the greedy reward:
    for them a group has contrast if its G rewards differ.

    Source: ReMax, https://arxiv.org/abs/2310.10505, §4. It must be the first member of a chain, as
    other transforms would not be applied to the greedy reward.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: When called: nothing was sampled greedily, or the input is not [B, 1].
    """

    def subtract(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        if stats.greedy_rewards is None:
            raise ValueError(
                "remax: stats.greedy_rewards must be the rewards of greedy completions, got None"
            )
        rewards, has_reward = in_groups("remax", 1, advantages, stats)
        return jnp.where(has_reward, rewards - stats.greedy_rewards[:, None], 0)

    return Transform(
        subtract,
        "group",
        requires=("greedy_rewards",),
        reads="rewards",
        is_baseline=True,
        shifts=True,
    )


def whiten(eps: float = 1e-8) -> Transform:
    """Standardize the advantages over all tokens of the rollout.

    A'ᵢₜ = (Aᵢₜ - mean(A)) / √(var(A) + ε), mean and variance (of a sample) over the tokens that
    count.

    The statistics are those of all mini-batches of a rollout, as in veRL, and do not depend on how
    many there are. Behind a transform that reads the policy being updated, or one of scope "token"
    or "sequence", they are those of the mini-batch. One advantage for each sequence is broadcast to
    its tokens first, so a long sequence has a larger weight than a short one. Source: REINFORCE++
    ("global batch"), https://arxiv.org/abs/2501.03262; variance and ε as in veRL. Chain it before
    `shape_by_entropy`, whose bound |A| / κ is meant for the advantage that enters the loss.

    Args:
      eps: Added to the variance.

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope "batch"; 0 at tokens that do not
      count.

    Raises:
      ValueError: `eps` is not positive.
    """
    require(eps > 0, "whiten.eps", eps, "a number > 0")

    def standardize(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        advantages = jnp.broadcast_to(advantages, stats.mask.shape)
        variance = masked_var(advantages, stats.mask, ddof=1)
        return masked_center(advantages, stats.mask) * jax.lax.rsqrt(variance + eps)

    return Transform(standardize, "batch", is_baseline=True)
