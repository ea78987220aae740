"""Advantages for pass@k: Pass@k training, and the lead of the best completion."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.advantages.groups import check_group_size, group_transform, over_std
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_center
from entropy_rl.types import TokenStats


def pass_at_k_training(group_size: int, k: int, eps: float = 1e-6) -> Transform:
    """Pass@k training: standardize the pass@k of the subsets of k completions.

    R = 1 - C(n-c, k) / C(n, k),   s = √(R (1 - R))
    A⁺ = (1 - R) / (s + ε),   A⁻ = (1 - R - C(n-c-1, k-1) / C(n-1, k-1)) / (s + ε)

    for the c correct and the n - c wrong ones of the n scored completions of a group. It is made
    for rewards of two values: correct is a reward above the group's mean. The advantages are small
    for prompts that k samples nearly always solve, and large for prompts that they seldom solve.
    k = 1 is `group_normalize` with `ddof=0`, but for ε. Source: https://arxiv.org/abs/2508.10751
    and its code.

    Args:
      group_size: Completions per prompt (G), at least 2.
      k: Samples in a subset, 1 <= k < G.
      eps: Added to the standard deviation.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group". A group with k scored
      completions or fewer has the advantage 0, as it has no two subsets to compare.

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("pass_at_k_training", group_size)
    require(
        1 <= k < group_size,
        "pass_at_k_training.k",
        k,
        f"a whole number >= 1 and < group_size ({group_size})",
    )
    require(eps > 0, "pass_at_k_training.eps", eps, "a number > 0")
    of_correct, of_wrong = _pass_at_k_advantages(group_size, k, eps)

    def normalize(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        correct = masked_center(rewards, has_reward, axis=1) > 0
        n, c = (jnp.sum(rows, axis=1, keepdims=True) for rows in (has_reward, correct))
        values = jnp.where(correct, jnp.asarray(of_correct)[n, c], jnp.asarray(of_wrong)[n, c])
        return jnp.where(has_reward, values, 0)

    return group_transform("pass_at_k_training", group_size, normalize)


def _pass_at_k_advantages(group_size: int, k: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """A⁺ and A⁻ for every n and c, f32[G + 1, G + 1] each; 0 where there is no such row or n <
    k.
    """
    of_correct, of_wrong = np.zeros((2, group_size + 1, group_size + 1), np.float32)
    for n in range(k, group_size + 1):
        for c in range(n + 1):
            pass_at_k = 1 - math.comb(n - c, k) / math.comb(n, k)
            std = math.sqrt(pass_at_k * (1 - pass_at_k))
            of_correct[n, c] = (1 - pass_at_k) / (std + eps)
            if c < n:
                others_fail = math.comb(n - c - 1, k - 1) / math.comb(n - 1, k - 1)
                of_wrong[n, c] = (1 - pass_at_k - others_fail) / (std + eps)
        of_correct[n, 0] = 0
    return of_correct, of_wrong


def grpo_passk(group_size: int, normalize: bool = True, eps: float = 1e-6) -> Transform:
    """Advantage of the best completion of a group alone, by its lead over the second (veRL).

    Aᵢ = (r₍₁₎ - r₍₂₎) / (std(r) + ε) for the completion with the largest reward, else 0

    over the scored completions of the group. Two best completions with equal rewards get 0, as the
    second adds nothing to pass@k. Source: https://arxiv.org/abs/2503.19595, as in veRL
    (`grpo_passk`).

    Args:
      group_size: Completions per prompt (G), at least 2.
      normalize: Divide by the standard deviation (of a sample), which is veRL's default.
      eps: Added to the standard deviation.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    require(eps >= 0, "grpo_passk.eps", eps, "a number >= 0")

    def reward_best(rewards: jax.Array, has_reward: jax.Array, stats: TokenStats) -> jax.Array:
        ranked = jnp.sort(jnp.where(has_reward, rewards, -jnp.inf), axis=1)
        first, second = ranked[:, -1:], ranked[:, -2:-1]
        # Not -inf: a single scored completion has no lead.
        lead = jnp.where(jnp.isfinite(second), first - second, 0)
        ahead = jnp.where(has_reward & (rewards == first), lead, 0)
        if normalize:
            ahead = over_std(ahead, rewards, has_reward, eps=eps)
        return ahead

    return group_transform("grpo_passk", group_size, reward_best)
