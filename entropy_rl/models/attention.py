"""Causal attention of whole rows: of training and of prompts."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, window: jax.Array | None = None) -> jax.Array:
    """Attention of every token of a row to itself and the tokens before it.

    Args:
      q: [B, T, H, h].
      k: [B, T, K, h].
      v: [B, T, K, h].
      window: int32[] or None. Tokens further back than window - 1 are not seen.

    Returns:
      [B, T, H, h].
    """
    if window is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)
    distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])[None, :]
    mask = (distance >= 0) & (distance < window)
    return jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])
