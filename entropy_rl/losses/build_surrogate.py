"""`build_surrogate`: the surrogate of `loss.surrogate` of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropy_rl.config.registry import build_named
from entropy_rl.losses.surrogate import Surrogate


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
        wrap=lambda fn: Surrogate(fn, "sequence"),
    )
