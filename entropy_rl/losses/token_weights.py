"""`TokenWeighting`, a function (advantages, stats) -> token weights with a scope, and `combine`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.config.registry import plain_function
from entropy_rl.losses.inputs import token_inputs
from entropy_rl.types import TokenStats


class TokenWeights(NamedTuple):
    """Weights w, c and v of the loss of a token.

    w · (surrogate + c · |log π - log π_old|) + v · kl_coef · KL(π ‖ π_ref)
    """

    weight: jax.Array  # w, f32[B, N]; 0 leaves the token out
    kl_penalty: jax.Array | None = None  # c, f32[B, N]; None for 0
    kl_weight: jax.Array | None = None  # v, f32[B, N]; None for 1


TokenWeightFn = Callable[[jax.Array, TokenStats], jax.Array | TokenWeights]
Scope = Literal["token", "sequence", "batch"]  # from narrow to wide
_SCOPES = get_args(Scope)


@dataclasses.dataclass(frozen=True)
class TokenWeighting:
    """Weights of tokens in the loss, in the manner of `Transform`; they are constants of the loss.

    Factories take the hyper-parameters and return a `TokenWeighting`; calling it takes the data:

        weighting = combine(forking_tokens(fraction=0.2), token_tis(cap=2.0))
        weights = weighting(advantages, stats)

    Advantages are the shaped ones. Tokens off the mask are 0 when `fn` is called, and its results
    at them are not read. The normalizer of the loss counts all tokens, also those of weight 0.

    Attributes:
      fn: (advantages f32[B, N], stats) -> weight f32[B, N], or `TokenWeights`.
      scope: What a weight depends on: "token", on its own token; "sequence", on the tokens of its
        sequence; "batch", on the whole mini-batch, which costs a forward pass before the gradient
        pass. All may read the policy that is being updated.
      corrects_sampler: Whether it corrects the difference between the old log-probs of the trainer
        and those of the sampler; without an effect where the two are the same numbers.
      weights_kl: Whether it only weights the KL term of the loss; without an effect where the loss
        has none.
    """

    fn: TokenWeightFn
    scope: Scope
    corrects_sampler: bool = False
    weights_kl: bool = False

    def __post_init__(self):
        require(
            self.scope in _SCOPES,
            "TokenWeighting.scope",
            self.scope,
            f"one of {', '.join(_SCOPES)}",
        )

    def __call__(self, advantages: jax.Array, stats: TokenStats) -> TokenWeights:
        """Compute the weights.

        Args:
          advantages: f32[B, N] or f32[B, 1].
          stats: Statistics of the same tokens.

        Returns:
          The weights; 0 off the mask, and without a gradient.

        Raises:
          ValueError: Shapes do not fit, or a statistic that it needs is missing.
        """
        advantages, stats = token_inputs("token_weighting", advantages, stats)
        weights = self.fn(advantages, stats)
        if not isinstance(weights, TokenWeights):
            weights = TokenWeights(weights)
        for x in (weights.weight, *jax.tree.leaves(weights[1:])):
            if x is None or jnp.shape(x) != stats.mask.shape:
                name = getattr(self.fn, "__qualname__", self.fn)
                raise ValueError(
                    f"token weights: result of {name} must have shape {stats.mask.shape}, got "
                    f"{None if x is None else jnp.shape(x)}"
                )
        return jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.where(stats.mask, x, 0.0)), weights)


def as_token_weighting(value: TokenWeighting | TokenWeightFn, who: str) -> TokenWeighting:
    """Return a token weighting as it is, and a plain function as one of scope "batch", as it may
    read the whole mini-batch.

    Raises:
      TypeError: It is neither.
    """
    if isinstance(value, TokenWeighting):
        return value
    return TokenWeighting(plain_function(value, TokenWeighting, who), "batch")


def combine(*weightings: TokenWeighting | TokenWeightFn) -> TokenWeighting:
    """Combine token weightings: weights are multiplied, coefficients of `kl_penalty` are added.

    Each reads all tokens, also those that another gives the weight 0, so the order has no effect.

    Args:
      *weightings: At least one; a plain function gets the scope "batch".

    Returns:
      A token weighting with the widest scope of its members.

    Raises:
      TypeError: One is no token weighting.
    """
    members = [as_token_weighting(x, f"combine: member {i}") for i, x in enumerate(weightings)]

    def product(advantages: jax.Array, stats: TokenStats) -> TokenWeights:
        weights = [member(advantages, stats) for member in members]
        kl_penalties = [w.kl_penalty for w in weights if w.kl_penalty is not None]
        kl_weights = [w.kl_weight for w in weights if w.kl_weight is not None]
        return TokenWeights(
            math.prod(w.weight for w in weights),
            sum(kl_penalties) if kl_penalties else None,
            math.prod(kl_weights) if kl_weights else None,
        )

    scope = max((member.scope for member in members), key=_SCOPES.index)
    return TokenWeighting(
        product,
        scope,
        any(member.corrects_sampler for member in members),
        any(member.weights_kl for member in members),
    )


def check_band(who: str, low: float, high: float) -> None:
    """Check the bounds of a ratio: 0 <= low < 1 < high.

    Raises:
      ValueError: One is out of range.
    """
    require(0 <= low < 1, f"{who}.low", low, "a number >= 0 and < 1")
    require(high > 1, f"{who}.high", high, "a number > 1")


def top(scores: jax.Array, among: jax.Array, count: jax.Array) -> jax.Array:
    """Mask of the `count` tokens with the highest scores; ties go to the first in row-major order.

    Args:
      scores: f32[B, N].
      among: bool[B, N], the candidates.
      count: f32[].

    Returns:
      bool[B, N]; all candidates if there are fewer than `count`.
    """
    scores = jnp.where(among, scores, -jnp.inf).reshape(-1)
    order = jnp.argsort(-scores, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    return among & (place.reshape(among.shape) < count)
