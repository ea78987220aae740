"""Rotary positions and the three attentions: over a whole row, over a prompt, over a cache."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

_MASKED = jnp.finfo(jnp.float32).min  # not -inf: a row with nothing to see must not become NaN


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3's stretch of the low rotary frequencies; field names are those of config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def rope_frequencies(head_dim: int, theta: float, scaling: Llama3RopeScaling | None) -> np.ndarray:
    """Angles per position: f_i = θ^(-2i/h), and with Llama 3's scaling low frequencies are divided.

    Wavelengths longer than `original / low_freq_factor` are stretched by `factor`, those shorter than
    `original / high_freq_factor` are kept, and in between the two are blended linearly in 1/wavelength.

    Returns:
      f32[h/2].
    """
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if scaling is None:
        return frequencies.astype(np.float32)
    wavelength = 2 * math.pi / frequencies
    kept = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    kept = np.clip(kept, 0.0, 1.0)
    return (frequencies * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def apply_rope(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Rotates the halves of each head, as Hugging Face's `rotate_half` does.

    Args:
      x: [..., T, heads, h].
      positions: int32[..., T].
      frequencies: f32[h/2].

    Returns:
      [..., T, heads, h] in x's type.
    """
    # float32: bfloat16 cannot tell position 256 from 257.
    frequencies = frequencies.reshape((1,) * positions.ndim + (1, -1))
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


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
