"""Advantages for pass@k: Pass@k training, and the lead of the best completion."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.advantages.groups import check_group_size, in_groups, over_std
from entropy_rl.advantages.transform import Transform
from entropy_rl.masked import masked_center
from entropy_rl.types import TokenStats


def pass_at_k_training(group_size: int, k: int, eps: float = 1e-6) -> Transform:
    """Standardize the pass@k of the subsets of k rows that a row is in.

    With c of the n scored rows of a group correct, R = 1 - C(n-c, k) / C(n, k) and s = √(R (1 - R)):

    A⁺ = (1 - R) / (s + ε),   A⁻ = (1 - R - C(n-c-1, k-1) / C(n-1, k-1)) / (s + ε)

    for the correct and the wrong rows. A prompt that k samples nearly always solve teaches little,
    one that they seldom solve much. k = 1 is `group_normalize` with `ddof=0`, but for ε. Source:
    Pass@k training, https://arxiv.org/abs/2508.10751, and its code.

    Args:
      group_size: Completions per prompt (G), at least 2.
      k: Samples in a subset, 1 <= k < G.
      eps: Added to the standard deviation.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group". A group with k scored rows or fewer has
      the advantage 0, as it has no two subsets to compare.

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("pass_at_k_training", group_size)
    if not 1 <= k < group_size:
        raise ValueError(
            f"pass_at_k_training: k={k!r} is not allowed; 1 <= k < group_size={group_size}"
        )
    if not eps > 0:
        raise ValueError(f"pass_at_k_training: eps={eps!r} is not allowed; eps > 0")
    of_correct, of_wrong = _pass_at_k_advantages(group_size, k, eps)

    def normalize(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("pass_at_k_training", group_size, advantages, stats)
        correct = masked_center(rewards, judged, axis=1) > 0
        n, c = (jnp.sum(rows, axis=1, keepdims=True) for rows in (judged, correct))
        values = jnp.where(correct, jnp.asarray(of_correct)[n, c], jnp.asarray(of_wrong)[n, c])
        return jnp.where(judged, values, 0).reshape(advantages.shape)

    return Transform(normalize, "group")


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
    """Reward the best row of a group alone, by how far it is ahead.

    Aᵢ = (r₍₁₎ - r₍₂₎) / (std(r) + ε) for the row with the largest reward and 0 for the others, over
    the scored rows of the group.

    Two rows that are equally good are no gain for pass@k, and get 0. Source:
    https://arxiv.org/abs/2503.19595, as veRL has it (`grpo_passk`).

    Args:
      group_size: Completions per prompt (G), at least 2.
      normalize: Divide by the standard deviation (of a sample), which is veRL's default.
      eps: Added to the standard deviation.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("grpo_passk", group_size)
    if not eps >= 0:
        raise ValueError(f"grpo_passk: eps={eps!r} is not allowed; eps >= 0")

    def reward_best(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("grpo_passk", group_size, advantages, stats)
        ranked = jnp.sort(jnp.where(judged, rewards, -jnp.inf), axis=1)
        first, second = ranked[:, -1:], ranked[:, -2:-1]
        # Not -inf: a row without another one is not ahead of it.
        lead = jnp.where(jnp.isfinite(second), first - second, 0)
        ahead = jnp.where(judged & (rewards == first), lead, 0)
        if normalize:
            ahead = over_std(ahead, rewards, judged, eps=eps)
        return ahead.reshape(advantages.shape)

    return Transform(reward_best, "group")
