"""Baselines that treat rare successes and rare failures unlike the mean does.

They take one reward for each row, f32[B, 1], and see the scored rows alone, as in `baselines`. Where
all rewards of a group are equal the advantage is exactly 0. `pass_at_k_training` and
`asymgrpo` are made for rewards of two values, whichever they are: correct is what lies
above the group's mean.
"""

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


def asymgrpo(group_size: int, b_pos: float = 0.9, b_neg: float = 0.4) -> Transform:
    """Weigh successes and failures by powers of the odds.

    A⁺ = ((1 - p) / p)^b⁺,   A⁻ = -(p / (1 - p))^b⁻

    with p the share of successes among the scored rows of the group. b⁺ = b⁻ = 1/2 is
    `group_normalize` with `ddof=0`, and 0 gives ±1. Source: AsymGRPO,
    https://arxiv.org/abs/2604.04894, from a summary of the paper; no code of it was found.

    Args:
      group_size: Completions per prompt (G), at least 2.
      b_pos: Exponent b⁺ >= 0 of the successes; the larger, the more a rare one counts.
      b_neg: Exponent b⁻ >= 0 of the failures.

    Returns:
      A transform f32[B, 1] -> f32[B, 1] of scope "group".

    Raises:
      ValueError: As `group_normalize`.
    """
    check_group_size("asymgrpo", group_size)
    for name, value in (("b_pos", b_pos), ("b_neg", b_neg)):
        if not 0 <= value < math.inf:
            raise ValueError(f"asymgrpo: {name}={value!r} is not allowed; {name} >= 0")

    def normalize(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        rewards, judged = in_groups("asymgrpo", group_size, advantages, stats)
        correct = masked_center(rewards, judged, axis=1) > 0
        wins = jnp.sum(correct, axis=1, keepdims=True)
        losses = jnp.sum(judged, axis=1, keepdims=True) - wins
        mixed = (wins > 0) & (losses > 0)
        odds = jnp.where(mixed, wins / jnp.maximum(losses, 1), 1)
        values = jnp.where(correct, odds**-b_pos, -(odds**b_neg))
        return jnp.where(judged & mixed, values, 0).reshape(advantages.shape)

    return Transform(normalize, "group")
