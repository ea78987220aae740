"""Rotary position embeddings (arXiv 2104.09864), with Llama 3's frequency scaling."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3's scaling of low rotary frequencies; field names are those of config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def rope_frequencies(head_dim: int, theta: float, scaling: Llama3RopeScaling | None) -> np.ndarray:
    """Returns the rotary frequencies f_i = θ^(-2i/h), in radians per position.

    With Llama 3's scaling, wavelengths longer than `original / low_freq_factor` are multiplied by
    `factor`, those shorter than `original / high_freq_factor` are unchanged, and those in between
    are interpolated linearly in 1/wavelength.

    Returns:
      f32[h/2].
    """
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if scaling is None:
        return frequencies.astype(np.float32)
    wavelength = 2 * math.pi / frequencies
    unscaled = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    unscaled = np.clip(unscaled, 0.0, 1.0)
    return (frequencies * (unscaled + (1 - unscaled) / scaling.factor)).astype(np.float32)


def apply_rope(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Applies rotary embeddings to the halves of each head, as Hugging Face's `rotate_half`.

    Args:
      x: [..., T, heads, h].
      positions: int32[..., T].
      frequencies: f32[h/2].

    Returns:
      [..., T, heads, h] in x's type.
    """
    # float32: bfloat16 cannot distinguish positions 256 and 257.
    frequencies = frequencies.reshape((1,) * positions.ndim + (1, -1))
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(
        x.dtype
    )
