"""Controls for `shape_by_entropy`: the bonus at other tokens, without the bound, or only the bound.

The bonus ψ is never negative, so it has two effects: it increases advantages, and it does so at
tokens of high entropy. A misplaced bonus has the first effect without the second; the other two
controls are the two arguments of its minimum.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from entropy_rl.advantages.shaping import shape_by_entropy
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_mean
from entropy_rl.types import TokenStats


def misplace_entropy_bonus(
    placement: Literal["uniform", "shuffled"], alpha: float = 0.4, kappa: float = 2.0, seed: int = 0
) -> Transform:
    """The bonus of `shape_by_entropy` with the same sum per sequence, at other tokens.

    uniform:   A'ₜ = Aₜ + 1/n Σᵤ ψᵤ
    shuffled:  A'ₜ = Aₜ + ψ_π(ₜ),   π a random permutation of the n tokens of the sequence

    with ψₜ = min(α sg(Hₜ), |Aₜ| / κ), the bonus of `shape_by_entropy`, in every update anew. So the
    sum of the bonus over a sequence, and over any mini-batch, is that of `shape_by_entropy`;
    "shuffled" keeps its distribution over the tokens as well. Where A is the same on all tokens of
    a sequence, as after a group baseline, the laws of `shape_by_entropy` hold: no bonus where A =
    0, none above |A| / κ, no sign flipped.

    π is a function of (seed, n) alone, with a key for each token by `fold_in`: it does not depend
    on how a mini-batch is split, and sequences of equal length share it, in all steps of a run.

    Args:
      placement: "uniform" or "shuffled".
      alpha: As for `shape_by_entropy`.
      kappa: As for `shape_by_entropy`.
      seed: Seed of the permutations; without effect on "uniform".

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope "sequence"; tokens that do not count
      get no bonus.

    Raises:
      ValueError: An argument is out of range.
    """
    require(
        placement in ("uniform", "shuffled"),
        "misplace_entropy_bonus.placement",
        placement,
        "uniform or shuffled",
    )
    shape = shape_by_entropy(alpha, kappa)

    def misplace(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        bonus = shape(advantages, stats) - advantages
        if placement == "uniform":
            bonus = masked_mean(bonus, stats.mask, axis=1, keepdims=True)
        else:
            bonus = jnp.take_along_axis(bonus, _shuffled_columns(stats.mask, seed), axis=1)
        return advantages + jnp.where(stats.mask, bonus, 0)

    return Transform(misplace, "sequence")


def unbounded_entropy_bonus(alpha: float = 0.4) -> Transform:
    """Add the bonus without its bound: A'ₜ = Aₜ + α sg(Hₜ).

    This is `shape_by_entropy` for κ → 0 where A ≠ 0. It can flip signs, and unlike there tokens
    with A = 0 get it. On-policy, α H depends on the prefix of a token alone, so it is a baseline:
    its gradient is 0 in expectation, and it only adds variance.

    Args:
      alpha: Weight α >= 0 of the entropy.

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope "token"; tokens that do not count get
      no bonus.

    Raises:
      ValueError: alpha is out of range.
    """
    require(0 <= alpha < math.inf, "unbounded_entropy_bonus.alpha", alpha, "a number >= 0")

    def add(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        return advantages + jnp.where(stats.mask, alpha * jax.lax.stop_gradient(stats.entropy), 0)

    return Transform(add, "token")


def scale_by_sign(positive: float = 1.5, negative: float = 0.5) -> Transform:
    """Scale advantages by their sign: A' = A · positive where A > 0, A · negative where A < 0.

    With 1 + 1/κ and 1 - 1/κ, the defaults for κ = 2, this is the limit of `shape_by_entropy` for α
    → ∞, where every token with an entropy above 0 has the largest bonus: a change of scale
    without any entropy.

    Args:
      positive: Factor >= 0 of advantages above 0.
      negative: Factor >= 0 of those below.

    Returns:
      A transform of scope "token" that keeps the shape.

    Raises:
      ValueError: An argument is out of range.
    """
    for name, value in (("positive", positive), ("negative", negative)):
        require(0 <= value < math.inf, f"scale_by_sign.{name}", value, "a number >= 0")

    def scale(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        return advantages * jnp.where(advantages > 0, positive, negative)

    return Transform(scale, "token")


def _shuffled_columns(mask: jax.Array, seed: int) -> jax.Array:
    """int32[B, N]: a permutation of the columns of the tokens on the mask, for each sequence."""
    lengths = jnp.sum(mask, axis=1)
    place = jnp.cumsum(mask, axis=1) - 1  # index among the tokens on the mask, whatever the padding
    key = jax.random.key(seed)

    def draw(length: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, length), place))

    of_row = jax.vmap(draw, in_axes=(None, 0))
    drawn = jax.vmap(of_row)(lengths, jnp.maximum(place, 0))
    # Uniform numbers are below 1, so that tokens off the mask come last.
    order = jnp.argsort(jnp.where(mask, drawn, 2.0), axis=1)
    return jnp.take_along_axis(order, jnp.maximum(place, 0), axis=1)
