"""`Memory`: what a method remembers from one update to the next, as an (init, update) pair.

Its state is a value in `TrainState`: it is in the checkpoint, and an update that is not applied leaves it
as it was. What the method makes of it are signals, a few numbers that the loss of every token of the
mini-batch reads, and that are metrics. They are there before the gradient, from what was recorded of the
whole mini-batch, so that they cost no pass and do not depend on micro-batches or devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Signals = dict[str, jax.Array]  # f32[] each, by the name of its metric


class Seen(NamedTuple):
    """What a memory sees of a mini-batch, before its gradient; or of a whole rollout, before its updates."""

    step: jax.Array  # int32[], rollouts done before that of the mini-batch
    entropy: jax.Array  # f32[], nats; mean over its judged tokens, from before the rollout's first update
    reward: jax.Array  # f32[], mean over its judged rows


class Memory(NamedTuple):
    """A method with a memory, in the manner of `optax.GradientTransformation`.

    Attributes:
      init: () -> the state before the first update, a nest of arrays f32[], int32[] or bool[].
      update: (state, seen) -> (state, signals).
    """

    init: Callable[[], Any]
    update: Callable[[Any, Seen], tuple[Any, Signals]]


def join_memories(**memories: Memory | None) -> Memory | None:
    """Several memories, or the lack of one, as one; None if there is none.

    Args:
      **memories: By name; their signals must have different names.
    """
    present = {name: memory for name, memory in memories.items() if memory is not None}
    if not present:
        return None

    def init() -> Any:
        return {name: memory.init() for name, memory in present.items()}

    def update(state: Any, seen: Seen) -> tuple[Any, Signals]:
        results = {name: memory.update(state[name], seen) for name, memory in present.items()}
        signals = {name: signal for _, of_one in results.values() for name, signal in of_one.items()}
        return {name: new for name, (new, _) in results.items()}, signals

    return Memory(init, update)
