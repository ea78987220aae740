"""HEAL: a reward for completions whose entropy over time is like that of another domain."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.types import SOURCE_EXTRA, TokenStats

_STEP = 1024  # makes lengths up to 2^20 safe from overflow


def heal(general: str, weight: float = 1.0, min_tokens: int = 50) -> Transform:
    """HEAL: reward completions whose entropies over time are closer to those of the other domain.

        D(i, j) = KL(softmax(τᵢ) ‖ softmax(τⱼ))
        r' = r + w [min D(i, j) over j of the other domain < min D(i, j) over j ≠ i of its own]

    with τ the entropies of a completion before the first update on a rollout, the shorter one
    stretched to the length of the longer by repeating values (nearest neighbor), and the softmax
    over its tokens. j are the scored completions of the whole rollout. A completion of at most
    `min_tokens` tokens gets nothing, and so does one without another one of either domain.

    Source: HEAL, https://arxiv.org/abs/2604.17928, and its code, with w = 1. There the training set
    is few problems of the target domain and problems of a general one; a config has both as a
    mixture. Its selection of the general problems, by accuracy and entropy, is not implemented.

    Args:
      general: The general domain: a source of problems, such as the name of a task of a `mixture`.
        All other sources are the target domain.
      weight: w, beside the other rewards.
      min_tokens: Completions of at most this many tokens get nothing.

    Returns:
      A transform of rewards of scope "batch", to be chained before a baseline. It takes B² N
      operations and reads `stats.extras["source/GENERAL"]`, f32[B, 1].

    Raises:
      ValueError: An argument is out of range; when called: the sources are missing in
        `stats.extras`.
    """
    require(bool(general), "heal.general", general, "the name of a source of problems")
    require(0 < weight < math.inf, "heal.weight", weight, "a number > 0")
    require(min_tokens >= 0, "heal.min_tokens", min_tokens, ">= 0")
    source = f"{SOURCE_EXTRA}{general}"

    def add(rewards: jax.Array, stats: TokenStats) -> jax.Array:
        if source not in stats.extras:
            raise ValueError(f"heal: stats.extras must have {source!r}, got {[*stats.extras]}")
        domain = stats.extras[source][:, 0]
        closer = _closer_to_other(stats.old_entropy, stats.mask, domain, min_tokens)
        return rewards + weight * closer[:, None]

    return Transform(add, "batch", requires=(source,), reads="rewards", shifts=True)


def _closer_to_other(
    entropy: jax.Array, mask: jax.Array, domain: jax.Array, min_tokens: int
) -> jax.Array:
    """Find completions that are closer to the other domain than to their own.

    Args:
      entropy: f32[B, N], nats.
      mask: bool[B, N], the tokens that count; a completion without one is ignored.
      domain: [B], the domain of a completion, one of two.
      min_tokens: Completions of at most this many tokens are not among them.

    Returns:
      f32[B], 1 or 0.
    """
    entropy, mask = _without_gaps(entropy, mask)
    lengths = jnp.sum(mask, axis=1)
    rows, columns = jnp.arange(len(lengths)), jnp.arange(mask.shape[1])[None]

    def stretched(values: jax.Array, own: jax.Array, both: jax.Array) -> jax.Array:
        """Log of the softmax over `both` columns of rows with `own` tokens; f32[B, N]."""
        own, divisor = own[:, None], jnp.maximum(both, 1)[:, None]
        # columns * own // both in two steps: the product of two lengths may overflow int32.
        high, low = columns // _STEP, columns % _STEP
        rest = high * own % divisor * _STEP + low * own
        at = high * own // divisor * _STEP + rest // divisor
        values = jnp.take_along_axis(values, at, axis=1)
        return jax.nn.log_softmax(jnp.where(columns < both[:, None], values, -jnp.inf), axis=1)

    def reward(i: jax.Array) -> jax.Array:
        own, both = jnp.broadcast_to(lengths[i], lengths.shape), jnp.maximum(lengths[i], lengths)
        one = stretched(jnp.broadcast_to(entropy[i], entropy.shape), own, both)
        other = stretched(entropy, lengths, both)
        terms = jnp.exp(one) * (one - other)
        distance = jnp.sum(jnp.where(columns < both[:, None], terms, 0), axis=1)
        same = domain == domain[i]
        nearest = lambda among: jnp.min(jnp.where(among & (lengths > 0), distance, jnp.inf))  # noqa: E731
        to_own, to_other = nearest(same & (rows != i)), nearest(~same)
        return (to_other < to_own) & jnp.isfinite(to_own) & (lengths[i] > min_tokens)

    return jax.lax.map(reward, rows).astype(jnp.float32)


def _without_gaps(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Move what counts to the front of each row; an episode has observations in between."""
    order = jnp.argsort(~mask, axis=1, stable=True)
    return jnp.take_along_axis(values, order, axis=1), jnp.take_along_axis(mask, order, axis=1)
