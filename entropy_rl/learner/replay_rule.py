"""`Replay`: completions of earlier rollouts are kept, and learned from once more.

What is kept is a completion with its advantage, which does not change any more: nothing of it
depends on the others of its group. All of it, and what decides when it is learned from, is part of
`TrainState`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from entropy_rl.config.registry import build_named
from entropy_rl.losses.controller import Controller

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


def build_replay(spec: Mapping[str, Any] | None, group_size: int) -> Replay | None:
    """Builds what `replay` of a config asks for.

        replay: {name: pipo, window: 8}

    Args:
      spec: The name of a replay rule of `entropy_rl.contrib` and its arguments; or
        `module:attribute` for your own: a `Replay`, or its factory; or None.
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
    return build_named(spec, "replay", Replay, returns="a Replay", given=given)
