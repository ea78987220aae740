"""Statistics over the entries that count. In every mask True means "this counts".

Entries that do not count are never read: they may hold anything, NaN included. A statistic of
nothing is zero, so that an empty row or group yields a zero and no NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Axis = int | tuple[int, ...] | None


def masked_sum(
    x: jax.Array, mask: jax.Array, *, axis: Axis = None, keepdims: bool = False
) -> jax.Array:
    """Sum the entries that count: Σ mᵢ xᵢ.

    Args:
      x: f32[...].
      mask: bool[...], of the shape of `x`.
      axis: Axes to sum over; None for all.
      keepdims: Keep the axes that were summed over, with length 1.

    Returns:
      f32, `x` without `axis`; 0 where nothing counts.

    Raises:
      ValueError: The shapes differ.
    """
    _check_mask(x, mask)
    # where, not a product: 0 · NaN is NaN
    return jnp.sum(jnp.where(mask, x, 0), axis=axis, keepdims=keepdims)


def masked_mean(
    x: jax.Array, mask: jax.Array, *, axis: Axis = None, keepdims: bool = False
) -> jax.Array:
    """Average the entries that count: Σ mᵢ xᵢ / Σ mᵢ.

    Arguments as in `masked_sum`; 0 where nothing counts.
    """
    total = masked_sum(x, mask, axis=axis, keepdims=keepdims)
    return total / jnp.maximum(jnp.sum(mask, axis=axis, keepdims=keepdims), 1)


def masked_center(x: jax.Array, mask: jax.Array, *, axis: Axis = None) -> jax.Array:
    """Subtract the mean of the entries that count: mᵢ (xᵢ - mean).

    Entries that are all equal give exactly zero, whatever their value. A plain `x - mean` does not:
    seven times 0.1 has a float32 mean beside 0.1, and a division by a standard deviation would blow
    that up.

    Arguments as in `masked_sum`.

    Returns:
      f32[...], the shape of `x`; 0 where `mask` is False.
    """
    _check_mask(x, mask)
    # Any one of the values that count does as the origin; the largest is found without an index.
    origin = jnp.max(x, axis=axis, keepdims=True, where=mask, initial=-jnp.inf)
    shifted = jnp.where(mask, x - origin, 0)
    return jnp.where(mask, shifted - masked_mean(shifted, mask, axis=axis, keepdims=True), 0)


def masked_var(
    x: jax.Array, mask: jax.Array, *, axis: Axis = None, ddof: int = 0, keepdims: bool = False
) -> jax.Array:
    """Variance of the entries that count: Σ mᵢ (xᵢ - mean)² / (Σ mᵢ - ddof).

    Arguments as in `masked_sum`, and `ddof`: 0 for the population's, 1 for the sample's (Bessel).
    0 where no more than `ddof` entries count.
    """
    squares = jnp.sum(jnp.square(masked_center(x, mask, axis=axis)), axis=axis, keepdims=keepdims)
    return squares / jnp.maximum(jnp.sum(mask, axis=axis, keepdims=keepdims) - ddof, 1)


def _check_mask(x: jax.Array, mask: jax.Array) -> None:
    if x.shape != mask.shape:
        raise ValueError(
            f"x of shape {x.shape} and mask of shape {mask.shape} must have the same shape"
        )
