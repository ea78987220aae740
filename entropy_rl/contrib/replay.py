"""`Replay`: completions of earlier rollouts are kept, and learned from once more.

What is kept is a completion with its advantage, which does not change any more: nothing of it
depends on the others of its group. All of it, and what decides when it is learned from, is part of
`TrainState`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.advantages.groups import check_group_size
from entropy_rl.config.checks import require
from entropy_rl.config.registry import build_named
from entropy_rl.losses.controller import BatchSummary, Coefficients, Controller

# The coefficient, and with it the metric: what the kept advantages are multiplied with; at 0 no
# update is made.
REPLAY_WEIGHT = "replay_weight"


class Replay(NamedTuple):
    """What is kept of a rollout, and when and how it is learned from.

    Attributes:
      rollouts: There is room for the rows of so many rollouts. New ones push out the oldest.
      choose: (advantages f32[B, 1], judged bool[B]) -> (the same to be kept, bool[B] which rows
        are).
      controller: Sees every rollout before its updates, and has the coefficient `replay_weight`.
      only_last: Whether nothing is kept any more once there is another rollout. Otherwise only
        updates of as many rows as any other are made, and rows that do not fill one wait.
      before: Whether what was kept is learned from before the new rollout is, or after it, which is
        then among what is kept.
      shaped: Whether the transforms of token and row scope that end the chain shape kept advantages
        too.
    """

    rollouts: int
    choose: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    controller: Controller
    only_last: bool
    before: bool
    shaped: bool


def pipo(group_size: int, window: int = 8, negative: float = 0.1) -> Replay:
    """PIPO: what the last rollout has taught is repeated if rewards have risen since, and else
    taken back.

    ξ = (μ - mean(M)) / std(M), M the mean rewards of the `window` rollouts before that with μ
    φ = ξ if ξ ≥ 0, else λ ξ
    Aᵢ ← φ n Aᵢ / Σⱼ |Aⱼ|, over the n judged rows of the group, for the rows of the rollout before

    with the ratio to the policy that sampled them, before the updates on the new rollout. There are
    none before `window` rollouts are there, or where these all have the same mean reward.

    Source: https://arxiv.org/abs/2604.00860 (v5), formulas and defaults from notes on it and on its
    configs. Partly reconstructed: which of the two updates comes first was not found; the standard
    deviation is that of a sample. Earlier versions of its code bound φ.

    Args:
      group_size: Completions per prompt (G), at least 2.
      window: K, at least 2.
      negative: λ, within 0 and 1.

    Returns:
      A replay of the last rollout; its controller also has the coefficient `improvement`, ξ.

    Raises:
      ValueError: An argument is out of range.
    """
    check_group_size("pipo", group_size)
    require(window >= 2, "pipo.window", window, "whole numbers >= 2")
    require(0 <= negative <= 1, "pipo.negative", negative, "0 <= negative <= 1")

    def choose(advantages: jax.Array, judged: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_group = lambda x: x.reshape(-1, group_size)  # noqa: E731
        sizes = jnp.where(of_group(judged), jnp.abs(of_group(advantages)), 0).sum(1, keepdims=True)
        count = of_group(judged).sum(1, keepdims=True)
        scaled = of_group(advantages) * jnp.where(
            sizes > 0, count / jnp.where(sizes > 0, sizes, 1), 0
        )
        return scaled.reshape(advantages.shape), judged

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


def uec_replay(rollouts: int = 2, every: int = 5, above: float = 1.0) -> Replay:
    """UEC-RL's replay: completions with a high advantage are learned from again every few steps.

    kept: the newest completions with A > A₀, as many as so many rollouts have
    every f-th rollout, after its own updates: updates on all of them, with the A of their own group

    Source: https://arxiv.org/abs/2604.14646, the rule from a summary; the defaults are those of the
    code of its authors (https://github.com/597358816/EFRame). Partly reconstructed: the paper's
    numbers were not found. That code keeps those with |A| > 1, and draws at random from what does
    not fill the room.

    Args:
      rollouts: Room for the completions of so many rollouts, at least 1.
      every: f, at least 1.
      above: A₀ ≥ 0.

    Returns:
      A replay of chosen rows.

    Raises:
      ValueError: An argument is out of range.
    """
    for name, value in (("rollouts", rollouts), ("every", every)):
        require(value >= 1, f"uec_replay.{name}", value, "whole numbers >= 1")
    require(above >= 0, "uec_replay.above", above, "numbers >= 0")

    def choose(advantages: jax.Array, judged: jax.Array) -> tuple[jax.Array, jax.Array]:
        return advantages, judged & (advantages[:, 0] > above)

    def update(waited: jax.Array, summary: BatchSummary) -> tuple[jax.Array, Coefficients]:
        due = waited + 1 >= every
        return jnp.where(due, 0, waited + 1), {REPLAY_WEIGHT: due.astype(jnp.float32)}

    controller = Controller(lambda: jnp.int32(0), update)
    return Replay(rollouts, choose, controller, only_last=False, before=False, shaped=True)


_FACTORIES: dict[str, Callable[..., Replay]] = {
    factory.__name__: factory for factory in (pipo, uec_replay)
}


def build_replay(spec: Mapping[str, Any] | None, group_size: int) -> Replay | None:
    """Builds what `replay` of a config asks for.

        replay: {name: pipo, window: 8}

    Args:
      spec: A name of this file and the arguments of the factory of that name; or `module:function`
        for a factory of your own, which returns a `Replay`; or None.
      group_size: Completions per prompt of the rollout, given to a factory that has such an
        argument.

    Returns:
      The replay; None for None.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    if spec is None:
        return None
    given = {"group_size": (group_size, "rollout.group_size")}
    return build_named(spec, "replay", _FACTORIES, returns="a Replay", kind=Replay, given=given)
