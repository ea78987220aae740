"""`build_surrogate`: what `loss.surrogate` of a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from entropy_rl.config.registry import build_named
from entropy_rl.contrib.flexible_clip import (
    flexible_clip,
    flexible_clip_did,
    flexible_clip_id,
    flexible_clip_od,
)
from entropy_rl.losses.clipping import ppo_clip, unclipped
from entropy_rl.losses.sequence_ratio import gmpo, gspo, s_trace
from entropy_rl.losses.soft_clipping import ce_gppo, cispo, dppo_tv, gppo, sapo
from entropy_rl.losses.surrogate import Surrogate

_FACTORIES: dict[str, Callable[..., Surrogate]] = {
    factory.__name__: factory
    for factory in (
        *(ppo_clip, unclipped, flexible_clip, gspo, gmpo, s_trace),
        *(flexible_clip_id, flexible_clip_did, flexible_clip_od),
        *(cispo, sapo, dppo_tv, ce_gppo, gppo),
    )
}


def build_surrogate(spec: Mapping[str, Any]) -> Surrogate:
    """Builds the surrogate that a config names.

        loss:
          surrogate: {name: ppo_clip, clip_low: 0.2, clip_high: 0.28}

    Args:
      spec: A name of this package and the arguments of the factory of that name; or
        `module:function` for a factory of your own, which returns a `Surrogate` or a function
        (advantages, stats) -> (loss, ClipMasks). Nothing is known of a plain function, so it counts
        as one that reads its row.

    Returns:
      The surrogate.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    returns = "a Surrogate or a function (advantages, stats) -> (loss, ClipMasks)"
    built = build_named(spec, "loss.surrogate", _FACTORIES, returns=returns)
    return built if isinstance(built, Surrogate) else Surrogate(built, "row")
