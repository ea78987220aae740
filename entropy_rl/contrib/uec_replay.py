"""Replay of UEC-RL: completions with a high advantage, every few rollouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.learner.replay_rule import REPLAY_WEIGHT, Replay
from entropy_rl.losses.controller import BatchSummary, Coefficients, Controller


def uec_replay(rollouts: int = 2, every: int = 5, above: float = 1.0) -> Replay:
    """Replay of UEC-RL: updates on completions with a high advantage, every few rollouts.

    The buffer holds the newest completions with A > A₀, at most those of `rollouts` rollouts. After
    the updates on every f-th rollout come updates on the whole buffer, each completion with the
    advantage that it had in its own group.

    Source: https://arxiv.org/abs/2604.14646, the rule from a summary; the defaults are those of the
    code of its authors (https://github.com/597358816/EFRame). Partly reconstructed: the paper's
    numbers were not found. That code keeps completions with |A| > 1, and samples at random from
    the remainder that fills no update.

    Args:
      rollouts: Capacity of the buffer in rollouts, at least 1.
      every: f, at least 1.
      above: A₀ ≥ 0.

    Returns:
      A replay rule.

    Raises:
      ValueError: An argument is out of range.
    """
    for name, value in (("rollouts", rollouts), ("every", every)):
        require(value >= 1, f"uec_replay.{name}", value, "a whole number >= 1")
    require(above >= 0, "uec_replay.above", above, "a number >= 0")

    def choose(advantages: jax.Array, has_reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        return advantages, has_reward & (advantages[:, 0] > above)

    def update(waited: jax.Array, summary: BatchSummary) -> tuple[jax.Array, Coefficients]:
        due = waited + 1 >= every
        return jnp.where(due, 0, waited + 1), {REPLAY_WEIGHT: due.astype(jnp.float32)}

    controller = Controller(lambda: jnp.int32(0), update)
    return Replay(rollouts, choose, controller, only_last=False, before=False, shaped=True)
