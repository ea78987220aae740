"""Rotary position embeddings (arXiv 2104.09864), and their scalings for longer contexts.

Formulas and defaults are those of `transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS`.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """Position interpolation (arXiv 2306.15595): all frequencies divided by `factor`."""

    factor: float


@dataclasses.dataclass(frozen=True)
class DynamicRopeScaling:
    """Dynamic NTK scaling: θ grows with the sequence beyond `max_position_embeddings` tokens.

    Such rows are refused, so that the frequencies are always the unscaled ones.
    """

    factor: float
    max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3's scaling of low rotary frequencies; field names are those of config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class YarnRopeScaling:
    """YaRN (arXiv 2309.00071); field names are those of config.json.

    `attention_factor` multiplies cos and sin; config.json may give it as `mscale` (see
    `yarn_attention_factor`).
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


RopeScaling = LinearRopeScaling | DynamicRopeScaling | Llama3RopeScaling | YarnRopeScaling


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Return the rotary frequencies f_i = θ^(-2i/h), in radians per position, or scaled ones.

    linear     f_i / factor
    llama3     wavelengths longer than `original / low_freq_factor` are multiplied by `factor`,
               those shorter than `original / high_freq_factor` are unchanged, and those in between
               are interpolated linearly in 1/wavelength
    yarn       f_i / factor for slow rotations, f_i for fast ones, and a linear ramp over i between
               those that turn `beta_fast` and `beta_slow` times in the original context

    Args:
      head_dim: h.
      theta: θ.
      scaling: The scaling; None for none.

    Returns:
      f32[h/2].
    """
    wavelengths = theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    frequencies = 1.0 / wavelengths
    if isinstance(scaling, LinearRopeScaling):
        frequencies = frequencies / scaling.factor
    elif isinstance(scaling, Llama3RopeScaling):
        frequencies = _llama3_frequencies(frequencies, scaling)
    elif isinstance(scaling, YarnRopeScaling):
        kept = 1 - _yarn_ramp(head_dim, theta, scaling)
        frequencies = 1.0 / (scaling.factor * wavelengths) * (1 - kept) + frequencies * kept
    return frequencies.astype(np.float32)


def _llama3_frequencies(frequencies: np.ndarray, scaling: Llama3RopeScaling) -> np.ndarray:
    wavelength = 2 * math.pi / frequencies
    unscaled = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    unscaled = np.clip(unscaled, 0.0, 1.0)
    return frequencies * (unscaled + (1 - unscaled) / scaling.factor)


def _yarn_ramp(head_dim: int, theta: float, scaling: YarnRopeScaling) -> np.ndarray:
    """Return f32[h/2]: 0 for frequencies that YaRN keeps, 1 for those that it interpolates."""

    def dimension(rotations: float) -> float:
        """Index of the frequency that turns so often in the original context."""
        turns = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as the reference: no division by zero
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low)
    return np.clip(ramp, 0, 1).astype(np.float32)


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """Return YaRN's default factor of cos and sin: 0.1 ln(factor) + 1 (arXiv 2309.00071, eq. 22).

    With both mscales, as DeepSeek has them, it is the ratio of 0.1 · mscale · ln(factor) + 1 for
    the one and the other.
    """

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def rope_magnitude(scaling: RopeScaling | None) -> float:
    """Return the factor of cos and sin: 1, but for YaRN."""
    return scaling.attention_factor if isinstance(scaling, YarnRopeScaling) else 1.0


def apply_rope(
    x: jax.Array, positions: jax.Array, frequencies: np.ndarray, magnitude: float = 1.0
) -> jax.Array:
    """Apply rotary embeddings to the halves of each head, as Hugging Face's `rotate_half`.

    Args:
      x: [..., T, heads, h].
      positions: int32[..., T].
      frequencies: f32[h/2].
      magnitude: Multiplies cos and sin.

    Returns:
      [..., T, heads, h] in x's type.
    """
    # float32: bfloat16 cannot distinguish positions 256 and 257.
    frequencies = frequencies.reshape((1,) * positions.ndim + (1, -1))
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if magnitude != 1.0:
        cos, sin = cos * magnitude, sin * magnitude
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(
        x.dtype
    )
