"""Attention of one new token per row to a cache: of the prompts once, of the new tokens per row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

_MASKED = jnp.finfo(jnp.float32).min  # not -inf: a row with nothing to see must not become NaN


@struct.dataclass
class LayerCache:
    """Keys and values of one layer: of the prompts once, of the new tokens per row."""

    prompt_keys: jax.Array  # [P, K, S, h]
    prompt_values: jax.Array  # [P, K, S, h]
    keys: jax.Array  # [B, K, N, h]
    values: jax.Array  # [B, K, N, h]


def cached_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layer: LayerCache,
    t: jax.Array,
    prompt_mask: jax.Array,
    window: int | None = None,
) -> tuple[jax.Array, LayerCache]:
    """Attention of the t-th new token of each row to its prompt and to the new tokens up to itself.

    The rows of a group read the same prompt keys in one matrix product.

    Args:
      q: [B, H, h].
      k: [B, K, h], to be appended at column t.
      v: [B, K, h], likewise.
      layer: The cache; B must be a multiple of its P, rows of a group stand together.
      t: int32[].
      prompt_mask: bool[P, S].
      window: Tokens further back than window - 1 are not seen.

    Returns:
      ([B, H, h], the cache with the column written).
    """
    rows, heads, h = q.shape
    prompts, prompt_length = prompt_mask.shape
    kv_heads = k.shape[1]
    keys = jax.lax.dynamic_update_slice(layer.keys, k[:, :, None], (0, 0, t, 0))
    values = jax.lax.dynamic_update_slice(layer.values, v[:, :, None], (0, 0, t, 0))

    # K heads x (G rows x H/K queries) against S prompt columns, and per row against N new columns.
    q = (q * h**-0.5).reshape(prompts, rows // prompts, kv_heads, heads // kv_heads, h)
    row_q = q.reshape(rows, kv_heads, heads // kv_heads, h)
    f32 = dict(preferred_element_type=jnp.float32)
    prompt_scores = jnp.einsum("pgkrh,pksh->pgkrs", q, layer.prompt_keys, **f32)
    new_scores = jnp.einsum("bkrh,bknh->bkrn", row_q, keys, **f32)

    seen_prompt, seen_new = prompt_mask, jnp.arange(keys.shape[2]) <= t
    if window is not None:
        lengths = prompt_mask.sum(-1, dtype=jnp.int32)
        seen_prompt &= jnp.arange(prompt_length)[None] > (lengths + t - window)[:, None]
        seen_new &= jnp.arange(keys.shape[2]) > t - window
    prompt_scores = jnp.where(seen_prompt[:, None, None, None], prompt_scores, _MASKED)
    new_scores = jnp.where(seen_new[None, None, None], new_scores, _MASKED)

    scores = jnp.concatenate([prompt_scores.reshape(new_scores.shape[:-1] + (-1,)), new_scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    prompt_weights = weights[..., :prompt_length].reshape(prompt_scores.shape)
    out = jnp.einsum("pgkrs,pksh->pgkrh", prompt_weights, layer.prompt_values).reshape(row_q.shape)
    out += jnp.einsum("bkrn,bknh->bkrh", weights[..., prompt_length:], values)
    return out.reshape(rows, heads, h), layer.replace(keys=keys, values=values)
