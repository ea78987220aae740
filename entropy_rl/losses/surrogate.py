"""`Surrogate`, a function (advantages, stats) -> (loss of each token, clip masks) with a scope."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.config.registry import plain_function
from entropy_rl.losses.controller import Controller
from entropy_rl.losses.inputs import token_inputs
from entropy_rl.types import TokenStats


class ClipMasks(NamedTuple):
    """The tokens on which the clipping of a surrogate acts; none of the masks has a gradient."""

    low: jax.Array  # bool[B, N]; at a lower bound, where A < 0
    high: jax.Array  # bool[B, N]; at an upper bound, where A > 0
    dual: jax.Array | None = None  # bool[B, N]; at the upper bound where A < 0; None without one


SurrogateFn = Callable[[jax.Array, TokenStats], tuple[jax.Array, ClipMasks]]


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """A surrogate objective: the loss of each token, in the manner of `Transform`.

    Factories take the hyper-parameters and return a `Surrogate`; calling it takes the data:

        surrogate = ppo_clip(clip_low=0.2, clip_high=0.28)
        loss, clipped = surrogate(advantages, stats)

    Of the statistics only `log_probs` has a gradient. Tokens off the mask are 0 when `fn` is
    called, and its results at them are not read.

    Attributes:
      fn: (advantages f32[B, N], stats) -> (loss f32[B, N], ClipMasks).
      scope: "token" if the loss of a token is a function of this token alone: it can be evaluated
        where the tokens of a sequence are apart, as in the loop of the head. "sequence" if it reads
        other tokens of its sequence.
      controller: Its state from one update to the next; the coefficients are in
        `stats.coefficients`.
    """

    fn: SurrogateFn
    scope: Literal["token", "sequence"]
    controller: Controller | None = None

    def __post_init__(self):
        require(
            self.scope in ("token", "sequence"), "Surrogate.scope", self.scope, "token or sequence"
        )

    def __call__(self, advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        """Compute the loss of each token.

        Args:
          advantages: f32[B, N] or f32[B, 1]; a constant.
          stats: Statistics of the same tokens.

        Returns:
          (loss f32[B, N], masks of the tokens on which a clip acts); 0 and False off the mask.

        Raises:
          ValueError: Shapes do not fit, or `fn` did not return (loss, ClipMasks).
        """
        advantages, stats = token_inputs("surrogate", advantages, stats)
        result = self.fn(advantages, stats)
        who = f"surrogate: result of {getattr(self.fn, '__qualname__', self.fn)}"
        if not (
            isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], ClipMasks)
        ):
            raise ValueError(f"{who} must be (loss, ClipMasks), got {type(result).__name__}")
        for x in jax.tree.leaves(result):
            if jnp.shape(x) != stats.mask.shape:
                raise ValueError(
                    f"{who} must have arrays of shape {stats.mask.shape}, got {jnp.shape(x)}"
                )
        loss, clipped = result
        return jnp.where(stats.mask, loss, 0), jax.tree.map(lambda x: x & stats.mask, clipped)


def as_surrogate(value: Surrogate | SurrogateFn, who: str) -> Surrogate:
    """Return a surrogate as it is, and a plain function as one of scope "sequence", as it may read
    other tokens of its sequence.

    Raises:
      TypeError: It is neither.
    """
    if isinstance(value, Surrogate):
        return value
    return Surrogate(plain_function(value, Surrogate, who), "sequence")


def no_clips(like: jax.Array) -> ClipMasks:
    """Clip masks that are False everywhere, of the shape of `like`."""
    nowhere = jnp.zeros(like.shape, bool)
    return ClipMasks(nowhere, nowhere)
