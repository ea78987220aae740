"""Causal attention of whole rows in plain XLA: the reference, and what CPUs run."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_CHUNK = 512
_STRIPES = 4
_LEAST_STRIPE = 128  # queries; less is not worth a program


def xla_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: int | jax.Array | None = None,
    chunk: int = _CHUNK,
) -> jax.Array:
    """`causal_attention` in memory O(chunk * T) per head, backward pass included.

    A row is cut into a few stripes of queries, and a stripe leaves out the keys after its end: of
    the T x T scores, 5/8 are computed. Rows of up to `chunk` tokens keep them for the backward
    pass. The stripes of longer ones go chunk by chunk, and the backward pass computes the scores of
    a chunk again.

    Args:
      q: [B, T, H, h].
      k: [B, T, K, h].
      v: [B, T, K, h].
      window: int, int32[] or None. Tokens further back than window - 1 are not seen.
      chunk: Queries that are computed at once.

    Returns:
      [B, T, H, h].
    """
    rows, length, heads, h = q.shape
    if length <= chunk:
        stripe = max(_LEAST_STRIPE, -(-length // _STRIPES))
        parts = [(i, min(i + stripe, length)) for i in range(0, length, stripe)]
        outs = [_attend(jnp.int32(i), q[:, i:j], k[:, :j], v[:, :j], window) for i, j in parts]
        return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
    chunks = -(-length // chunk)
    q = jnp.pad(q, ((0, 0), (0, chunks * chunk - length), (0, 0), (0, 0)))
    q = q.reshape(rows, chunks, chunk, heads, h).swapaxes(0, 1)
    # float32: the gradients of keys and values are sums over chunks.
    k32, v32 = k.astype(jnp.float32), v.astype(jnp.float32)

    # With prevent_cse: the compiler unrolls the loop over a stripe of one chunk.
    @jax.checkpoint
    def attend_chunk(
        first: jax.Array, q: jax.Array, keys: jax.Array, values: jax.Array
    ) -> jax.Array:
        return _attend(first, q, keys.astype(k.dtype), values.astype(v.dtype), window)

    outputs, per_stripe = [], -(-chunks // _STRIPES)
    for start in range(0, chunks, per_stripe):
        stop = min(start + per_stripe, chunks)
        keys, values = k32[:, : stop * chunk], v32[:, : stop * chunk]
        firsts = chunk * jnp.arange(start, stop, dtype=jnp.int32)
        outputs.append(
            jax.lax.map(lambda x, k=keys, v=values: attend_chunk(*x, k, v), (firsts, q[start:stop]))
        )
    out = jnp.concatenate(outputs).swapaxes(0, 1)
    return out.reshape(rows, chunks * chunk, heads, h)[:, :length]


def _attend(
    first: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, window: int | jax.Array | None
) -> jax.Array:
    """Attention of the queries at positions first, first + 1, ... to the keys at 0, 1, ..."""
    distance = first + jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])[None, :]
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    return jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])
