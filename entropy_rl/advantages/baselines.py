"""Baselines: what a reward is compared with.

The group baselines take one reward for each row, f32[B, 1]; row b belongs to group b // G. They see
the scored rows alone: a row without a judgement moves no mean, and its own advantage is 0. So is
that of a row which is the only scored one of its group, as there is nothing to compare it with (veRL
keeps its raw reward instead). Where all rewards of a group are equal the advantage is exactly 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.advantages.groups import check_group_size, in_groups, over_std
from entropy_rl.advantages.transform import Transform
from entropy_rl.masked import masked_center, masked_var
from entropy_rl.types import TokenStats


def group_normalize(group_size: int, eps: float = 1e-6, ddof: int = 1) -> Transform:
    """Standardize the reward within its group.

    Aᵢ = (rᵢ - mean(r)) / (std(r) + ε), over the scored rows of the group.

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
    check_group_size("group_normalize", group_size)
    if not eps >= 0:
        raise ValueError(f"group_normalize: eps={eps!r} is not allowed; eps >= 0")
    if ddof not in (0, 1):
        raise ValueError(f"group_normalize: ddof={ddof!r} is not allowed; allowed: 0, 1")

    def normalize(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("group_normalize", group_size, advantages, stats)
        centered = masked_center(rewards, judged, axis=1)
        return over_std(centered, rewards, judged, eps=eps, ddof=ddof).reshape(advantages.shape)

    return Transform(normalize, "group")


def group_center(group_size: int) -> Transform:
    """Subtract the group's mean reward: Aᵢ = rᵢ - mean(r), over the scored rows of the group.

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
    check_group_size("group_center", group_size)

    def center(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("group_center", group_size, advantages, stats)
        return masked_center(rewards, judged, axis=1).reshape(advantages.shape)

    return Transform(center, "group")


def rloo(group_size: int) -> Transform:
    """Subtract the mean reward of the group's other rows.

    Aᵢ = rᵢ - mean(r_j, j ≠ i) = n / (n - 1) · (rᵢ - mean(r)), over the n scored rows of the group.

    The baseline of a row does not depend on the row, so the policy gradient stays unbiased. Source:
    RLOO, https://arxiv.org/abs/2402.14740.

    Args:
      group_size: Completions per prompt (G), at least 2.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("rloo", group_size)

    def leave_out(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("rloo", group_size, advantages, stats)
        n = jnp.sum(judged, axis=1, keepdims=True)
        # A lone row is its own mean, so what max() makes of n = 1 is multiplied by 0.
        return (masked_center(rewards, judged, axis=1) * n / jnp.maximum(n - 1, 1)).reshape(
            advantages.shape
        )

    return Transform(leave_out, "group")


def opo(group_size: int) -> Transform:
    """Subtract the group's mean reward, in which a row weighs as much as it has tokens.

    Aᵢ = rᵢ - Σ_j |o_j| r_j / Σ_j |o_j|, over the scored rows of the group, |o| the number of tokens.

    Where the squared norm of a row's gradient is proportional to its length, this is the baseline
    of least variance. Source: OPO, https://arxiv.org/abs/2505.23585.

    Args:
      group_size: Completions per prompt (G), at least 2.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("opo", group_size)

    def center(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("opo", group_size, advantages, stats)
        lengths = jnp.sum(stats.mask, axis=1).reshape(rewards.shape)
        # From the plain mean, so that equal rewards are exact zeros before they are weighed.
        centered = masked_center(rewards, judged, axis=1)
        weighted = jnp.sum(lengths * centered, axis=1, keepdims=True)
        total = jnp.maximum(jnp.sum(lengths, axis=1, keepdims=True), 1)
        return jnp.where(judged, centered - weighted / total, 0).reshape(advantages.shape)

    return Transform(center, "group")


def gpg(group_size: int) -> Transform:
    """Subtract the group's mean reward, and make up for the rewards that are zero.

    Aᵢ = B / #{j : r_j ≠ 0} · (rᵢ - mean(r)), the mean over the scored rows of the group, B and the
    count over those of the mini-batch.

    Source: GPG, https://arxiv.org/abs/2504.02546, as veRL has it, with its F_norm = 1; the paper's
    own count has not been compared. It is meant for rewards of 0 and 1: with -1 and 1 the factor is
    1.

    Args:
      group_size: Completions per prompt (G), at least 2.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "batch".

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("gpg", group_size)

    def center(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("gpg", group_size, advantages, stats)
        nonzero = jnp.sum(judged & (rewards != 0))
        scale = jnp.sum(judged) / jnp.maximum(nonzero, 1)
        return (scale * masked_center(rewards, judged, axis=1)).reshape(advantages.shape)

    return Transform(center, "batch")


def remax() -> Transform:
    """Subtract the reward of the greedy completion of the same prompt: A = r - r(greedy).

    That completion takes the most likely token at every position. A run whose advantage has this
    member samples one beside the G completions of each prompt, and does not learn from it. Where it
    has no judgement, the others have no baseline, and are left out. G = 1 will do. Dynamic sampling
    and exploration do not look at it: for them a group has contrast if its G rewards differ.

    Source: ReMax, https://arxiv.org/abs/2310.10505, §4. It stands first: what another transform
    makes of the rewards is not made of the greedy completion's.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: When called: nothing was sampled greedily, or the input is not [B, 1].
    """

    def subtract(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        if stats.greedy_rewards is None:
            raise ValueError("remax: stats.greedy_rewards is missing; needed: a greedy completion")
        rewards, judged = in_groups("remax", 1, advantages, stats)
        return jnp.where(judged, rewards - stats.greedy_rewards[:, None], 0)

    return Transform(subtract, "group", requires=("greedy_rewards",))


def whiten(eps: float = 1e-8) -> Transform:
    """Standardize the advantages over all tokens of the mini-batch.

    A'ᵢₜ = (Aᵢₜ - mean(A)) / √(var(A) + ε), mean and variance (of a sample) over the tokens that
    count.

    One advantage for each row is broadcast to its tokens first, so a long row weighs more than a
    short one. Source: REINFORCE++, https://arxiv.org/abs/2501.03262; variance and ε as in veRL.
    Chain it before `shape_by_entropy`, whose bound |A| / κ is meant for the advantage that meets
    the loss.

    Args:
      eps: Added to the variance.

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope "batch"; 0 at tokens that do not
      count.

    Raises:
      ValueError: `eps` is not positive.
    """
    if not eps > 0:
        raise ValueError(f"whiten: eps={eps!r} is not allowed; eps > 0")

    def standardize(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        advantages = jnp.broadcast_to(advantages, stats.mask.shape)
        variance = masked_var(advantages, stats.mask, ddof=1)
        return masked_center(advantages, stats.mask) * jax.lax.rsqrt(variance + eps)

    return Transform(standardize, "batch")
