"""Masked statistics: sum, mean, centering and variance over the entries where the mask is True.

Masked-out entries have no effect, even if they are NaN. A statistic over no entries is zero, so
that an empty row or group gives zero instead of NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Axis = int | tuple[int, ...] | None


def masked_sum(
    x: jax.Array, mask: jax.Array, *, axis: Axis = None, keepdims: bool = False
) -> jax.Array:
    """Masked sum: Σ mᵢ xᵢ.

    Args:
      x: f32[...].
      mask: bool[...], the shape of `x`.
      axis: Axes to sum over; None for all.
      keepdims: Keep the reduced axes with length 1.

    Returns:
      f32, the shape of `x` without `axis`; 0 where no entry is True.

    Raises:
      ValueError: The shapes differ.
    """
    _check_mask(x, mask)
    # where, not a product: 0 · NaN is NaN
    return jnp.sum(jnp.where(mask, x, 0), axis=axis, keepdims=keepdims)


def masked_mean(
    x: jax.Array, mask: jax.Array, *, axis: Axis = None, keepdims: bool = False
) -> jax.Array:
    """Masked mean: Σ mᵢ xᵢ / Σ mᵢ.

    Arguments as in `masked_sum`; 0 where no entry is True.
    """
    total = masked_sum(x, mask, axis=axis, keepdims=keepdims)
    return total / jnp.maximum(jnp.sum(mask, axis=axis, keepdims=keepdims), 1)


def masked_center(x: jax.Array, mask: jax.Array, *, axis: Axis = None) -> jax.Array:
    """Subtract the masked mean: mᵢ (xᵢ - mean).

    Equal entries give exactly zero. A plain `x - mean` does not: the float32 mean of seven times
    0.1 differs from 0.1, and a division by the standard deviation would amplify the difference.

    Arguments as in `masked_sum`.

    Returns:
      f32[...], the shape of `x`; 0 where `mask` is False.
    """
    _check_mask(x, mask)
    # Any entry serves as origin; the maximum is found without an index.
    origin = jnp.max(x, axis=axis, keepdims=True, where=mask, initial=-jnp.inf)
    shifted = jnp.where(mask, _difference(x, origin), 0)
    return jnp.where(mask, shifted - masked_mean(shifted, mask, axis=axis, keepdims=True), 0)


@jax.custom_jvp
def _difference(x: jax.Array, y: jax.Array) -> jax.Array:
    """x - y, exactly 0 where they are equal.

    A compiler may fuse a subtraction with the product that x is (FMA). That product is not rounded,
    and x differs from y, which is the same number, rounded. Comparisons read rounded numbers.
    """
    return jnp.where((x == y) & jnp.isfinite(x), 0, x - y)


_difference.defjvps(
    lambda dx, difference, x, y: dx,
    lambda dy, difference, x, y: jnp.broadcast_to(-dy, difference.shape),
)


def masked_var(
    x: jax.Array, mask: jax.Array, *, axis: Axis = None, ddof: int = 0, keepdims: bool = False
) -> jax.Array:
    """Masked variance: Σ mᵢ (xᵢ - mean)² / (Σ mᵢ - ddof).

    Arguments as in `masked_sum`, and `ddof`: 0 for the population, 1 for the sample variance
    (Bessel). 0 where at most `ddof` entries are True.
    """
    squares = jnp.sum(jnp.square(masked_center(x, mask, axis=axis)), axis=axis, keepdims=keepdims)
    return squares / jnp.maximum(jnp.sum(mask, axis=axis, keepdims=keepdims) - ddof, 1)


def _check_mask(x: jax.Array, mask: jax.Array) -> None:
    if x.shape != mask.shape:
        raise ValueError(
            f"x of shape {x.shape} and mask of shape {mask.shape} must have the same shape"
        )
