"""`build_token_weighting`: the token weights of `loss.token_weights` of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.config.registry import build_named
from entropy_rl.losses.surrogate import Surrogate
from entropy_rl.losses.token_weights import TokenWeighting, combine


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
            wrap=lambda fn: TokenWeighting(fn, "batch"),
            given=given,
        )
        for i, spec in enumerate(specs)
    ]
    return combine(*built) if built else None
