"""Sampling one token per row by the inverse of the cumulative distribution.

One uniform number per row decides; log-prob and entropy come out of the same pass. Beside Gumbel
noise of vocabulary size this is many times cheaper, and the sample of a row depends on nothing but
its own logits and its own number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_BLOCK = 128


def sample(
    logits: jax.Array,
    uniforms: jax.Array,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws a token per row from softmax(logits / temperature), cut to its nucleus.

    Args:
      logits: [B, V].
      uniforms: f32[B] in [0, 1).
      temperature: Divides the logits. 0 takes the most likely token.
      top_p: Mass of the nucleus (arXiv 1904.09751); 1 keeps all.
      greedy: bool[B], rows that take the most likely token at any temperature; None for none.

    Returns:
      (ids int32[B], log_probs f32[B], entropy f32[B]). Log-probs and entropies (nats) are those of
      the tempered distribution before the cut, which is what a trainer sees; at temperature 0 those
      at temperature 1.
    """
    z = logits.astype(jnp.float32) / (temperature if temperature > 0 else 1.0)
    z -= jnp.max(z, axis=-1, keepdims=True)
    mass = jnp.exp(z)
    total = jnp.sum(mass, axis=-1)
    entropy = jnp.log(total) - jnp.sum(mass * z, axis=-1) / total
    if temperature == 0 or greedy is not None:
        # The first of the largest; argmax is slow on CPU.
        likeliest = jnp.min(jnp.where(z == 0, jnp.arange(z.shape[-1])[None], z.shape[-1]), axis=-1)
    if temperature == 0:
        ids = likeliest
    else:
        ids = inverse_cdf(mass if top_p >= 1 else nucleus(mass, top_p), uniforms)
        ids = ids if greedy is None else jnp.where(greedy, likeliest, ids)
    log_probs = jnp.take_along_axis(z, ids[:, None], axis=-1)[:, 0] - jnp.log(total)
    return ids.astype(jnp.int32), log_probs, entropy


def inverse_cdf(mass: jax.Array, uniforms: jax.Array) -> jax.Array:
    """The token at which the cumulative mass passes `uniforms` times the total, in two levels.

    Args:
      mass: f32[B, V], not negative, not all zero.
      uniforms: f32[B] in [0, 1).

    Returns:
      int32[B]; always a token of positive mass.
    """
    rows, size = mass.shape
    blocks = jnp.pad(mass, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    of_blocks = jnp.sum(blocks, axis=-1)
    ends = jnp.cumsum(of_blocks, axis=-1)
    target = uniforms * ends[:, -1]
    block = _first_beyond(target, ends, of_blocks)
    before = jnp.where(
        block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], axis=-1)[:, 0], 0
    )
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _first_beyond(target - before, jnp.cumsum(inside, axis=-1), inside)


def _first_beyond(target: jax.Array, ends: jax.Array, mass: jax.Array) -> jax.Array:
    """int32[B]: the first place with mass whose end lies beyond the target.

    Sums in parallel are not monotone to the last bit, and the two levels round differently: a place
    without mass is never taken, whatever its end, and where no end lies beyond the target the last
    place with mass.
    """
    places, has_mass = jnp.arange(mass.shape[-1])[None], mass > 0
    beyond = jnp.where(has_mass & (ends > target[:, None]), places, mass.shape[-1])
    last = jnp.max(jnp.where(has_mass, places, 0), axis=-1)
    return jnp.minimum(jnp.min(beyond, axis=-1), last)


def nucleus(mass: jax.Array, top_p: float) -> jax.Array:
    """Zeroes all but the smallest set of likeliest tokens whose share reaches `top_p`; ties stay
    together.

    The threshold is found by bisection over the bit patterns of the floats, whose order is that of
    the numbers: exact, and without sorting the vocabulary.

    Args:
      mass: f32[B, V], not negative.
      top_p: 0 < top_p < 1.

    Returns:
      f32[B, V].
    """
    wanted = top_p * jnp.sum(mass, axis=-1)
    bits = jax.lax.bitcast_convert_type(mass, jnp.int32)

    def halve(_, bounds):
        low, high = bounds  # tokens >= low hold enough mass, tokens >= high do not
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits >= middle[:, None], mass, 0), axis=-1) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    rows = mass.shape[0]
    infinity = jax.lax.bitcast_convert_type(jnp.float32(jnp.inf), jnp.int32)
    start = (jnp.zeros(rows, jnp.int32), jnp.full(rows, infinity))
    low, _ = jax.lax.fori_loop(0, 31, halve, start)
    return jnp.where(bits >= low[:, None], mass, 0)
