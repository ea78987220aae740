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
    """Adaptive entropy control of Skywork-OR1: a rollout sets the coefficient of the next.

    the loss of the updates on rollout k has -c H 1[H_{k-1} < H*], with H₀ below H*
    then c ← clip(c + δ, c_min, c_max) if H_k < H*, else clip(c - δ, c_min, c_max)
    H_k = -mean log π_old(o) over the sampled tokens of rollout k

    Source: https://arxiv.org/abs/2505.22312 §3.2.5, as in the code of
    https://github.com/SkyworkAI/Skywork-OR1: H is `get_entropy_metric` of dp_actor.py, and
    `EntController.update` is called once for each rollout, after its updates. The defaults are
    those of its scripts. Here the mean is over the tokens of completions that have a reward, and
    the tokens of an update that was not applied are not in it.

    Args:
      target: H*, nats.
      delta: δ > 0.
      initial: c before the first update, within the bounds.
      minimum: c_min ≥ 0.
      maximum: c_max ≥ c_min.

    Returns:
      A controller with the coefficient `entropy_coef`. Its state: c f32[], the gate bool[], and of
      the current rollout the step int32[], the sum of -log π_old f32[] and the tokens f32[].

    Raises:
      ValueError: An argument is out of range.
    """
    check_entropy_control("adaptive_entropy", target, delta, initial, minimum, maximum)

    def init() -> dict[str, jax.Array]:
        return {
            "coefficient": jnp.float32(initial),
            "open": jnp.bool_(True),
            "step": jnp.int32(-1),
            "surprisal": jnp.float32(0),
            "tokens": jnp.float32(0),
        }

    def update(
        state: dict[str, jax.Array], summary: BatchSummary
    ) -> tuple[dict[str, jax.Array], Coefficients]:
        # A mini-batch of another step ends the rollout before it, if that had a token.
        same = summary.step == state["step"]
        ended = ~same & (state["tokens"] > 0)
        below = state["surprisal"] / jnp.maximum(state["tokens"], 1) < target
        moved = jnp.clip(state["coefficient"] + jnp.where(below, delta, -delta), minimum, maximum)
        coefficient = jnp.where(ended, moved, state["coefficient"])
        is_open = jnp.where(ended, below, state["open"])
        tokens = jnp.where(same, state["tokens"], 0) + summary.tokens
        surprisal = jnp.where(same, state["surprisal"], 0) + summary.surprisal * summary.tokens
        state = {
            "coefficient": coefficient,
            "open": is_open,
            "step": summary.step,
            "surprisal": surprisal,
            "tokens": tokens,
        }
        return state, {ENTROPY_COEF: jnp.where(is_open, coefficient, 0)}

    return Controller(init, update)


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
    check_entropy_control("lagged_adaptive_entropy", target, delta, initial, minimum, maximum)

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


def check_entropy_control(
    who: str, target: float, delta: float, initial: float, minimum: float, maximum: float
) -> None:
    """Check the arguments of an entropy control.

    Raises:
      ValueError: One is out of range.
    """
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
