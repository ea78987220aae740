"""PIPO: repeat or undo the updates on the previous rollout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.advantages.groups import check_group_size
from entropy_rl.config.checks import require
from entropy_rl.learner.replay_rule import REPLAY_WEIGHT, Replay
from entropy_rl.losses.controller import BatchSummary, Coefficients, Controller


def pipo(group_size: int, window: int = 8, negative: float = 0.1) -> Replay:
    """PIPO: repeat the updates on the previous rollout if rewards have risen since, or undo them.

    ξ = (μ - mean(M)) / std(M)
    φ = ξ if ξ ≥ 0, else λ ξ
    Aᵢ ← φ n Aᵢ / Σⱼ |Aⱼ|

    with μ the mean reward of the new rollout, M the mean rewards of the `window` rollouts before
    it, and the sum over the n scored completions of a group of the previous rollout. The ratio is
    to the policy that sampled them. These updates come before those on the new rollout; there are
    none until M is complete, or where all of M are equal.

    Source: https://arxiv.org/abs/2604.00860 (v5), formulas and defaults from notes on it and on its
    configs. Partly reconstructed: which of the two updates comes first was not found; the standard
    deviation is that of a sample. Earlier versions of its code bound φ.

    Args:
      group_size: Completions per prompt (G), at least 2.
      window: K, at least 2.
      negative: λ, within 0 and 1.

    Returns:
      A replay rule of the last rollout; its controller also has the coefficient `improvement`, ξ.

    Raises:
      ValueError: An argument is out of range.
    """
    check_group_size("pipo", group_size)
    require(window >= 2, "pipo.window", window, "a whole number >= 2")
    require(0 <= negative <= 1, "pipo.negative", negative, "a number from 0 to 1")

    def choose(advantages: jax.Array, has_reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_group = lambda x: x.reshape(-1, group_size)  # noqa: E731
        sizes = jnp.where(of_group(has_reward), jnp.abs(of_group(advantages)), 0).sum(
            1, keepdims=True
        )
        count = of_group(has_reward).sum(1, keepdims=True)
        scaled = of_group(advantages) * jnp.where(
            sizes > 0, count / jnp.where(sizes > 0, sizes, 1), 0
        )
        return scaled.reshape(advantages.shape), has_reward

    def init() -> dict[str, jax.Array]:
        return {"rewards": jnp.zeros(window), "rollouts": jnp.int32(0)}

    def update(
        state: dict[str, jax.Array], summary: BatchSummary
    ) -> tuple[dict[str, jax.Array], Coefficients]:
        # Differences from one of them: equal rewards have a deviation of exactly 0.
        rewards = state["rewards"] - state["rewards"][:1]
        deviation = jnp.std(rewards, ddof=1)
        known = (state["rollouts"] >= window) & (deviation > 0)
        rise = summary.reward - state["rewards"][0] - jnp.mean(rewards)
        improvement = jnp.where(known, rise / jnp.where(known, deviation, 1), 0)
        weight = jnp.where(improvement >= 0, improvement, negative * improvement)
        rewards = jnp.roll(state["rewards"], -1).at[-1].set(summary.reward)
        return (
            {"rewards": rewards, "rollouts": state["rollouts"] + 1},
            {REPLAY_WEIGHT: weight, "improvement": improvement},
        )

    return Replay(1, choose, Controller(init, update), only_last=True, before=True, shaped=False)
