"""Rotary positions (arXiv 2104.09864), with Llama 3's stretch of the low frequencies."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3's stretch of the low rotary frequencies; field names are those of config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def rope_frequencies(head_dim: int, theta: float, scaling: Llama3RopeScaling | None) -> np.ndarray:
    """Angles per position: f_i = θ^(-2i/h), and with Llama 3's scaling low frequencies are divided.

    Wavelengths longer than `original / low_freq_factor` are stretched by `factor`, those shorter
    than `original / high_freq_factor` are kept, and in between the two are blended linearly in
    1/wavelength.

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
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(
        x.dtype
    )
