"""`build_token_weighting`: what `loss.token_weights` of a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropy_rl.config.registry import build_named
from entropy_rl.losses.covariance_selection import clip_cov, kl_cov
from entropy_rl.losses.entropy_selection import erc, forking_tokens, opefo
from entropy_rl.losses.importance_correction import (
    geometric_rejection,
    icepop,
    sequence_tis,
    token_tis,
)
from entropy_rl.losses.surrogate import Surrogate
from entropy_rl.losses.token_weights import TokenWeighting, combine

_FACTORIES: dict[str, Callable[..., TokenWeighting]] = {
    factory.__name__: factory
    for factory in (
        *(forking_tokens, clip_cov, kl_cov, erc, opefo),
        *(token_tis, sequence_tis, icepop, geometric_rejection),
    )
}


def build_token_weighting(
    specs: Sequence[Mapping[str, Any]], surrogate: Surrogate
) -> TokenWeighting | None:
    """Combines the token weightings that a config lists.

        loss:
          token_weights:
            - {name: forking_tokens, fraction: 0.2}

    Args:
      specs: The entries. A name is one of the factories of this package, or `module:function` for a
        factory of your own, which returns a `TokenWeighting` or a function (advantages, stats) ->
        weights f32[B, N]. Nothing is known of a plain function, so it counts as "batch".
      surrogate: The surrogate of the loss, given to each factory that has such an argument.

    Returns:
      The combination; None for an empty list.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    given = {"surrogate": (surrogate, "loss.surrogate")}
    returns = "a TokenWeighting or a function (advantages, stats) -> weights"
    built = [
        build_named(spec, f"loss.token_weights[{i}]", _FACTORIES, returns=returns, given=given)
        for i, spec in enumerate(specs)
    ]
    built = [x if isinstance(x, TokenWeighting) else TokenWeighting(x, "batch") for x in built]
    return combine(*built) if built else None
