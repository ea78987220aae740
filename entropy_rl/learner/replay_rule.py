"""`Replay`: the rule of a replay buffer, and `build_replay`.

The buffer holds completions of earlier rollouts, each with the advantage that it had in its group,
which does not change any more. The buffer, and the state that decides when there are updates on it,
are part of `TrainState`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from entropy_rl.config.registry import build_named
from entropy_rl.losses.controller import Controller

# Name of the coefficient, and of its metric: the factor of the stored advantages. At 0 there is no
# update.
REPLAY_WEIGHT = "replay_weight"


class Replay(NamedTuple):
    """Which completions a replay buffer stores, and when and how there are updates on them.

    Attributes:
      rollouts: Capacity of the buffer in rollouts. New completions replace the oldest.
      choose: (advantages f32[B, 1], has_reward bool[B]) -> (advantages to store f32[B, 1], bool[B]
        which completions to store).
      controller: Reads the summary of every rollout before its updates, and has the coefficient
        `replay_weight`.
      only_last: Whether the buffer is cleared for each new rollout. Otherwise updates on it have as
        many sequences as all others, and a remainder that fills no update waits.
      before: Whether the updates on the buffer come before those on the new rollout. Otherwise they
        come after them, and the new rollout is in the buffer.
      shaped: Whether the transforms of scope "token" and "sequence" that end the chain apply to
        stored advantages too.
    """

    rollouts: int
    choose: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    controller: Controller
    only_last: bool
    before: bool
    shaped: bool


def build_replay(spec: Mapping[str, Any] | None, group_size: int) -> Replay | None:
    """Build the replay rule of the section `replay` of a config.

        replay: {name: pipo, window: 8}

    Args:
      spec: The name of a replay rule of `entropy_rl.contrib` and its arguments; or
        `module:attribute` for your own: a `Replay`, or its factory; or None.
      group_size: Completions per prompt of the rollout, given to a factory that has such an
        argument.

    Returns:
      The rule; None for None.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    if spec is None:
        return None
    given = {"group_size": (group_size, "rollout.group_size")}
    return build_named(spec, "replay", Replay, returns="a Replay", given=given)
