"""`build_selection`: what `loss.selection` of a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropy_rl.factories import build_named
from entropy_rl.selection.covariance import clip_cov, kl_cov
from entropy_rl.selection.entropy import erc, forking_tokens, opefo
from entropy_rl.selection.mismatch import geometric_rejection, icepop, sequence_tis, token_tis
from entropy_rl.selection.selection import Selection, combine
from entropy_rl.surrogates import Surrogate

_FACTORIES: dict[str, Callable[..., Selection]] = {
    factory.__name__: factory
    for factory in (
        *(forking_tokens, clip_cov, kl_cov, erc, opefo),
        *(token_tis, sequence_tis, icepop, geometric_rejection),
    )
}


def build_selection(specs: Sequence[Mapping[str, Any]], surrogate: Surrogate) -> Selection | None:
    """Combines the selections that a config lists.

        loss:
          selection:
            - {name: forking_tokens, fraction: 0.2}

    Args:
      specs: The entries. A name is one of the factories of this package, or `module:function` for a factory
        of your own, which returns a `Selection` or a function (advantages, stats) -> weights f32[B, N].
        Nothing is known of a plain function, so it counts as "batch".
      surrogate: The surrogate of the loss, given to each factory that has such an argument.

    Returns:
      The combination; None for an empty list.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    given = {"surrogate": (surrogate, "loss.surrogate")}
    returns = "a Selection or a function (advantages, stats) -> weights"
    built = [
        build_named(spec, f"loss.selection[{i}]", _FACTORIES, returns=returns, given=given)
        for i, spec in enumerate(specs)
    ]
    built = [x if isinstance(x, Selection) else Selection(x, "batch") for x in built]
    return combine(*built) if built else None
