"""`build_loss`: the `Loss` of the section `loss` of a config."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import at_place
from entropy_rl.config.registry import build_named
from entropy_rl.config.train import LossConfig
from entropy_rl.losses.controller import trace_controller
from entropy_rl.losses.controllers import build_entropy_control
from entropy_rl.losses.loss import Loss
from entropy_rl.losses.surrogate import Surrogate, as_surrogate
from entropy_rl.losses.token_weights import TokenWeighting, as_token_weighting, combine
from entropy_rl.types import TokenStats


def build_loss(config: LossConfig, max_new_tokens: int | None = None) -> Loss:
    """Build and check the loss of a config.

    Args:
      config: The section `loss`.
      max_new_tokens: Limit of new tokens; required by the aggregation "constant".

    Returns:
      The loss.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    surrogate = build_surrogate(config.surrogate)
    controller = build_entropy_control(config.entropy_coef)
    return Loss(
        surrogate=surrogate,
        token_weighting=build_token_weighting(config.token_weights, surrogate),
        aggregation=config.aggregation,
        max_tokens=max_new_tokens,
        kl_coef=config.kl_coef,
        kl_estimator=config.kl_estimator,
        entropy_coef=config.entropy_coef if controller is None else controller,
    )


def check_traces(loss: Loss, stats: TokenStats) -> None:
    """Trace a loss and its gradient, so that a function that does not fit is refused early.

    Args:
      loss: The loss.
      stats: Shapes of the statistics of a mini-batch.

    Raises:
      ValueError: A result has another shape or type, or what a function reads is missing; the
        message starts with the dotted path of the function.
    """
    shape = stats.mask.shape

    def total(log_probs: jax.Array, stats: TokenStats) -> jax.Array:
        reference = stats.old_log_probs
        stats = stats.replace(log_probs=log_probs)
        return jnp.sum(loss(jnp.zeros(shape), stats, ref_log_probs=reference)[0])

    if loss.controller is not None:
        with at_place("loss", (ValueError, TypeError)):
            found = trace_controller(loss.controller)
        of_tokens = {n: jax.ShapeDtypeStruct((1, 1), x.dtype) for n, x in found.items()}
        stats = stats.replace(coefficients=of_tokens)
    advantages = jax.ShapeDtypeStruct(shape, jnp.float32)
    _trace("loss.surrogate", loss.surrogate, advantages, stats)
    if loss.token_weighting is not None:
        _trace("loss.token_weights", loss.token_weighting, advantages, stats)
    _trace("loss", jax.grad(total), advantages, stats)


def _trace(path: str, function: Callable[..., Any], *arguments: Any) -> Any:
    with at_place(path, (ValueError, TypeError)):
        return jax.eval_shape(function, *arguments)


def build_surrogate(spec: Mapping[str, Any]) -> Surrogate:
    """Build the surrogate that a config names.

        loss:
          surrogate: {name: ppo_clip, clip_low: 0.2, clip_high: 0.28}

    Args:
      spec: The name of a surrogate of `entropy_rl.losses` or `entropy_rl.contrib` and its
        arguments; or `module:function` for your own: a plain function (advantages, stats) -> (loss,
        ClipMasks), or a factory that returns one, or a `Surrogate`. A plain function gets the
        scope "sequence", as it may read other tokens of its sequence.

    Returns:
      The surrogate.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    returns = "a Surrogate or a function (advantages, stats) -> (loss, ClipMasks)"
    return build_named(
        spec,
        "loss.surrogate",
        Surrogate,
        returns=returns,
        wrap=functools.partial(as_surrogate, who="loss.surrogate"),
    )


def build_token_weighting(
    specs: Sequence[Mapping[str, Any]], surrogate: Surrogate
) -> TokenWeighting | None:
    """Build and combine the token weightings that a config lists.

        loss:
          token_weights:
            - {name: forking_tokens, fraction: 0.2}

    Args:
      specs: The entries. A name is that of a token weighting of `entropy_rl.losses` or
        `entropy_rl.contrib`, or `module:function` for your own: a plain function (advantages,
        stats) -> weights f32[B, N], or a factory that returns one, or a `TokenWeighting`. A plain
        function gets the scope "batch", as it may read the whole mini-batch.
      surrogate: The surrogate of the loss, given to each factory that has such an argument.

    Returns:
      The combination; None for an empty list.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    given = {"surrogate": (surrogate, "loss.surrogate")}
    returns = "a TokenWeighting or a function (advantages, stats) -> weights"
    built = [
        build_named(
            spec,
            f"loss.token_weights[{i}]",
            TokenWeighting,
            returns=returns,
            wrap=functools.partial(as_token_weighting, who="loss.token_weights"),
            given=given,
        )
        for i, spec in enumerate(specs)
    ]
    return combine(*built) if built else None
