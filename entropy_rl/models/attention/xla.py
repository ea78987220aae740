"""Causal attention of full sequences in plain XLA: the reference, and the one for CPUs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.precision import default_precision

_CHUNK = 512
_STRIPES = 4
_MIN_STRIPE = 128  # queries; smaller stripes do not pay off


class Prefix(NamedTuple):
    """Keys and values of the tokens before those of each row."""

    keys: jax.Array  # [B, S, K, h]
    values: jax.Array  # [B, S, K, h]
    lengths: jax.Array  # int32[B], which of them count


def xla_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: int | jax.Array | None = None,
    chunk: int = _CHUNK,
    prefix: Prefix | None = None,
) -> jax.Array:
    """`causal_attention` in memory O(chunk * T) per head, including the backward pass.

    The queries are split into a few stripes, each of which skips the keys after its end: of the
    T x T scores, 5/8 are computed. Sequences of up to `chunk` tokens save them for the backward
    pass. Longer ones are processed in chunks, whose scores the backward pass recomputes.

    Args:
      q: [B, T, H, h].
      k: [B, T, K, h].
      v: [B, T, K, h].
      window: int, int32[] or None. Tokens further back than window - 1 are masked.
      chunk: Queries per chunk.
      prefix: What precedes the tokens of each row, or None. It has no queries.

    Returns:
      [B, T, H, h].
    """
    rows, length, heads, h = q.shape
    if length <= chunk:
        stripe = max(_MIN_STRIPE, -(-length // _STRIPES))
        parts = [(i, min(i + stripe, length)) for i in range(0, length, stripe)]
        outs = [
            _attend(jnp.int32(i), q[:, i:j], k[:, :j], v[:, :j], window, prefix) for i, j in parts
        ]
        return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
    chunks = -(-length // chunk)
    q = jnp.pad(q, ((0, 0), (0, chunks * chunk - length), (0, 0), (0, 0)))
    q = q.reshape(rows, chunks, chunk, heads, h).swapaxes(0, 1)
    # float32: the gradients of keys and values are sums over chunks.
    k32, v32, prefix = jax.tree.map(_float32, (k, v, prefix))

    # Keeps prevent_cse: the compiler unrolls the loop over a stripe of one chunk.
    @jax.checkpoint
    def attend_chunk(
        first: jax.Array, q: jax.Array, keys: jax.Array, values: jax.Array, prefix: Prefix | None
    ) -> jax.Array:
        return _attend(first, q, keys.astype(k.dtype), values.astype(v.dtype), window, prefix)

    outputs, per_stripe = [], -(-chunks // _STRIPES)
    for start in range(0, chunks, per_stripe):
        stop = min(start + per_stripe, chunks)
        keys, values = k32[:, : stop * chunk], v32[:, : stop * chunk]
        firsts = chunk * jnp.arange(start, stop, dtype=jnp.int32)
        outputs.append(
            jax.lax.map(
                lambda x, k=keys, v=values: attend_chunk(*x, k, v, prefix), (firsts, q[start:stop])
            )
        )
    out = jnp.concatenate(outputs).swapaxes(0, 1)
    return out.reshape(rows, chunks * chunk, heads, h)[:, :length]


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _attend(
    first: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: int | jax.Array | None,
    prefix: Prefix | None,
) -> jax.Array:
    """Attend from queries first, first + 1, ... to the prefix and to keys 0, 1, ..."""
    query, column = first + jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None, :]
    mask, distance = query >= column, query - column
    if window is not None:
        mask &= distance < window
    mask = mask[None, None]
    if prefix is not None:
        column = jnp.arange(prefix.keys.shape[1])[None, None, None]
        length = prefix.lengths[:, None, None, None]
        before = jnp.broadcast_to(column < length, (len(q), 1, len(query), column.shape[-1]))
        if window is not None:
            before &= length + query[None, None] - column < window
        mask = jnp.concatenate([before, jnp.broadcast_to(mask, (len(q),) + mask.shape[1:])], -1)
        join = lambda before, x: jnp.concatenate([before.astype(x.dtype), x], axis=1)  # noqa: E731
        k, v = join(prefix.keys, k), join(prefix.values, v)
    with default_precision(q.dtype):
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
