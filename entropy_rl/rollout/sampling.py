"""Sampling one token per row by inverting the cumulative distribution.

One uniform number per row suffices, and log-prob and entropy come from the same pass. This is many
times cheaper than Gumbel noise of vocabulary size, and a row's sample depends only on its own
logits and number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.lm_head.vocabulary import Ranges, is_unused

_BLOCK = 128
_UNUSED_LOGIT = -1e30  # finite, as 0 · inf would be NaN


def sample(
    logits: jax.Array,
    uniforms: jax.Array,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: jax.Array | None = None,
    unused: Ranges = (),
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sample a token per row from the nucleus of softmax(logits / temperature).

    Args:
      logits: [B, V].
      uniforms: f32[B] in [0, 1).
      temperature: Divides the logits; 0 is greedy.
      top_p: Mass of the nucleus (arXiv 1904.09751); 1 keeps all.
      greedy: bool[B], rows that take the argmax at any temperature; None for none.
      unused: Ranges of ids that are no token, which have probability 0.

    Returns:
      (ids int32[B], log_probs f32[B], entropy f32[B]). Log-probs and entropies (nats) are those of
      the tempered distribution before nucleus truncation, as in the trainer; at temperature 0,
      those at temperature 1.
    """
    z = logits.astype(jnp.float32) / (temperature if temperature > 0 else 1.0)
    if unused:
        z = jnp.where(is_unused(jnp.arange(z.shape[-1])[None], unused), _UNUSED_LOGIT, z)
    top = jnp.max(z, axis=-1, keepdims=True)
    if temperature == 0 or greedy is not None:
        # Index of the first maximum; argmax is slow on CPU. Not of `z - top == 0`: compilers fuse
        # the division with the subtraction, which then does not round the quotient.
        last = z.shape[-1] - 1  # also where no logit is a number, so that the id is a token's
        likeliest = jnp.min(jnp.where(z == top, jnp.arange(z.shape[-1])[None], last), axis=-1)
    z -= top
    mass = jnp.exp(z)
    total = jnp.sum(mass, axis=-1)
    entropy = jnp.log(total) - jnp.sum(mass * z, axis=-1) / total
    if temperature == 0:
        ids = likeliest
    else:
        ids = inverse_cdf(mass if top_p >= 1 else nucleus(mass, top_p), uniforms)
        ids = ids if greedy is None else jnp.where(greedy, likeliest, ids)
    log_probs = jnp.take_along_axis(z, ids[:, None], axis=-1)[:, 0] - jnp.log(total)
    return ids.astype(jnp.int32), log_probs, entropy


def inverse_cdf(mass: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Return the token at which the cumulative mass passes `uniforms` times the total.

    Searches blocks of tokens first, then within a block.

    Args:
      mass: f32[B, V], not negative, not all zero.
      uniforms: f32[B] in [0, 1).

    Returns:
      int32[B], always a token of positive mass.
    """
    rows, size = mass.shape
    blocks = jnp.pad(mass, ((0, 0), (0, -size % _BLOCK))).reshape(rows, -1, _BLOCK)
    block_mass = jnp.sum(blocks, axis=-1)
    ends = jnp.cumsum(block_mass, axis=-1)
    target = uniforms * ends[:, -1]
    block = _first_beyond(target, ends, block_mass)
    before = jnp.where(
        block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], axis=-1)[:, 0], 0
    )
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _first_beyond(target - before, jnp.cumsum(inside, axis=-1), inside)


def _first_beyond(target: jax.Array, ends: jax.Array, mass: jax.Array) -> jax.Array:
    """Return int32[B]: the first entry with mass whose cumulative sum exceeds the target.

    Parallel sums are not monotone to the last bit, and the two levels round differently: entries
    without mass are skipped, and if no sum exceeds the target, the last entry with mass is taken.
    """
    places, has_mass = jnp.arange(mass.shape[-1])[None], mass > 0
    beyond = jnp.where(has_mass & (ends > target[:, None]), places, mass.shape[-1])
    last = jnp.max(jnp.where(has_mass, places, 0), axis=-1)
    return jnp.minimum(jnp.min(beyond, axis=-1), last)


def nucleus(mass: jax.Array, top_p: float) -> jax.Array:
    """Zero all but the smallest set of most likely tokens with at least `top_p` of the mass; ties
    are kept together (arXiv 1904.09751).

    Finds the threshold by bisection over the bit patterns of the floats, which are ordered like
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
        low, high = (
            bounds  # tokens with bits >= low hold enough mass, those with bits >= high do not
        )
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits >= middle[:, None], mass, 0), axis=-1) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    rows = mass.shape[0]
    infinity = jax.lax.bitcast_convert_type(jnp.float32(jnp.inf), jnp.int32)
    start = (jnp.zeros(rows, jnp.int32), jnp.full(rows, infinity))
    low, _ = jax.lax.fori_loop(0, 31, halve, start)
    return jnp.where(bits >= low[:, None], mass, 0)
