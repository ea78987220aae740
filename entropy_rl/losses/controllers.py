"""Controllers of the coefficient of the entropy bonus, with a target entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.config.registry import build_named
from entropy_rl.losses.controller import BatchSummary, Coefficients, Controller

# Name of the coefficient, and of its metric.
ENTROPY_COEF = "entropy_coef"


def adaptive_entropy(
    target: float = 0.2,
    delta: float = 1e-4,
    initial: float = 0.0,
    minimum: float = 0.0,
    maximum: float = 5e-3,
) -> Controller:
    """Adaptive entropy control of Skywork-OR1.

    c ← clip(c + δ, c_min, c_max) if H < H*, else clip(c - δ, c_min, c_max)
    the loss has -c H 1[H < H*]

    Source: https://arxiv.org/abs/2505.22312 §3.2.5, rule and defaults as in its code
    (`EntController`) and scripts. Partly reconstructed: which entropy H is, and when in a step it
    is measured, was not found. Here it is that of the mini-batch from before the first update on
    its rollout, and c changes before it is used.

    Args:
      target: H*, nats.
      delta: δ > 0.
      initial: c before the first update, within the bounds.
      minimum: c_min ≥ 0.
      maximum: c_max ≥ c_min.

    Returns:
      A controller of c f32[], with the coefficient `entropy_coef`.

    Raises:
      ValueError: An argument is out of range.
    """
    _check("adaptive_entropy", target, delta, initial, minimum, maximum)

    def update(coefficient: jax.Array, summary: BatchSummary) -> tuple[jax.Array, Coefficients]:
        below = summary.entropy < target
        coefficient = jnp.clip(coefficient + jnp.where(below, delta, -delta), minimum, maximum)
        return coefficient, {ENTROPY_COEF: jnp.where(below, coefficient, 0)}

    return Controller(lambda: jnp.float32(initial), update)


def lagged_adaptive_entropy(
    target: float = 0.2,
    delta: float = 5e-3,
    initial: float = 0.0,
    minimum: float = 0.0,
    maximum: float = 1.0,
) -> Controller:
    """Adaptive entropy control of TRL: the entropy of an update sets the coefficient of the next.

    the loss of update u has -c H 1[H_{u-1} ≤ H*], with H₀ = ∞
    then c ← min(c + δ, c_max) if H_u ≤ H*, else max(c - δ, c_min)

    Source: TRL's `GRPOTrainer` (`use_adaptive_entropy`), rule and defaults as there; the bonus of
    the first update is 0. There H_u is the entropy of the policy at update u; here it is that from
    before the first update on the rollout, which is the same where a rollout has one update. TRL's
    bonus is the token mean of H for every loss type; here it has the aggregation of the loss.

    Args:
      target: H*, nats.
      delta: δ > 0.
      initial: c before the first update, within the bounds.
      minimum: c_min ≥ 0.
      maximum: c_max ≥ c_min.

    Returns:
      A controller of c f32[] and of the gate bool[], with the coefficient `entropy_coef`.

    Raises:
      ValueError: An argument is out of range.
    """
    _check("lagged_adaptive_entropy", target, delta, initial, minimum, maximum)

    def init() -> dict[str, jax.Array]:
        return {"coefficient": jnp.float32(initial), "open": jnp.bool_(False)}

    def update(
        state: dict[str, jax.Array], summary: BatchSummary
    ) -> tuple[dict[str, jax.Array], Coefficients]:
        used = jnp.where(state["open"], state["coefficient"], 0)
        below = summary.entropy <= target
        moved = jnp.clip(state["coefficient"] + jnp.where(below, delta, -delta), minimum, maximum)
        return {"coefficient": moved, "open": below}, {ENTROPY_COEF: used}

    return Controller(init, update)


def _check(
    who: str, target: float, delta: float, initial: float, minimum: float, maximum: float
) -> None:
    require(target > 0, f"{who}.target", target, "a number > 0")
    require(delta > 0, f"{who}.delta", delta, "a number > 0")
    require(minimum >= 0, f"{who}.minimum", minimum, "a number >= 0")
    require(maximum >= minimum, f"{who}.maximum", maximum, f"a number >= minimum ({minimum})")
    require(
        minimum <= initial <= maximum,
        f"{who}.initial",
        initial,
        f"a number from {minimum} to {maximum}",
    )


def build_entropy_control(spec: float | Mapping[str, Any]) -> Controller | None:
    """Build the controller of `loss.entropy_coef` of a config.

        loss:
          entropy_coef: {name: adaptive_entropy, target: 0.2}

    Args:
      spec: A number, which needs no controller; or the name of a controller of `entropy_rl.losses`
        or `entropy_rl.contrib` and its arguments; or `module:attribute` for your own: a
        `Controller` with the coefficient `entropy_coef`, or its factory.

    Returns:
      The controller; None for a number.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    if isinstance(spec, int | float):
        return None
    returns = f"a Controller with the coefficient {ENTROPY_COEF!r}"
    return build_named(spec, "loss.entropy_coef", Controller, returns=returns)
