"""`Controller`: what a method remembers from one update to the next, as an (init, update) pair.

Its state is a value in `TrainState`: it is in the checkpoint, and an update that is not applied
leaves it as it was. What the method makes of it are coefficients, a few numbers that the loss of
every token of the mini-batch reads, and that are metrics. They are there before the gradient, from
what was recorded of the whole mini-batch, so that they cost no pass and do not depend on
micro-batches or devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Coefficients = dict[str, jax.Array]  # f32[] each, by the name of its metric


class BatchSummary(NamedTuple):
    """What a controller sees of a mini-batch, before its gradient; or of a whole rollout, before
    its updates.
    """

    step: jax.Array  # int32[], rollouts done before that of the mini-batch
    entropy: (
        jax.Array
    )  # f32[], nats; mean over its judged tokens, from before the rollout's first update
    reward: jax.Array  # f32[], mean over its judged rows


class Controller(NamedTuple):
    """A method with a controller, in the manner of `optax.GradientTransformation`.

    Attributes:
      init: () -> the state before the first update, a nest of arrays f32[], int32[] or bool[].
      update: (state, summary) -> (state, coefficients).
    """

    init: Callable[[], Any]
    update: Callable[[Any, BatchSummary], tuple[Any, Coefficients]]


def join_controllers(**controllers: Controller | None) -> Controller | None:
    """Several controllers, or the lack of one, as one; None if there is none.

    Args:
      **controllers: By name; their coefficients must have different names.
    """
    present = {
        name: controller for name, controller in controllers.items() if controller is not None
    }
    if not present:
        return None

    def init() -> Any:
        return {name: controller.init() for name, controller in present.items()}

    def update(state: Any, summary: BatchSummary) -> tuple[Any, Coefficients]:
        results = {
            name: controller.update(state[name], summary) for name, controller in present.items()
        }
        coefficients = {
            name: coefficient
            for _, of_one in results.values()
            for name, coefficient in of_one.items()
        }
        return {name: new for name, (new, _) in results.items()}, coefficients

    return Controller(init, update)
