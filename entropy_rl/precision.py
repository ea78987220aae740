"""Precision of matrix products: float32 means float32 on every device; no 64-bit types."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def check_32_bit() -> None:
    """Refuse the 64-bit mode of JAX, in which programs of float32 arrays get mixed types.

    Raises:
      ValueError: `jax_enable_x64` is on.
    """
    if jax.config.jax_enable_x64:
        raise ValueError("jax_enable_x64 (JAX_ENABLE_X64): must be false, got true")


def product_precision(dtype: Any) -> jax.lax.Precision | None:
    """Return the `precision` of a product with a factor of this type.

    By default, XLA multiplies float32 numbers with the 10 bits of tensorfloat32 on NVIDIA GPUs, and
    in bfloat16 on TPUs: log-probs of sampler and trainer would then differ by much more than
    rounding. `jax_default_matmul_precision`, or JAX_DEFAULT_MATMUL_PRECISION in the environment,
    has priority, for users who prefer the speed.

    Args:
      dtype: Type of the factor.

    Returns:
      HIGHEST for float32; None, the default, for narrower types, and if the user has set one.
    """
    if jnp.dtype(dtype) != jnp.float32 or jax.config.jax_default_matmul_precision is not None:
        return None
    return jax.lax.Precision.HIGHEST


def default_precision(dtype: Any) -> contextlib.AbstractContextManager[None]:
    """Give the products of functions without such an argument the precision for this type."""
    precision = product_precision(dtype)
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def with_precision(function: Callable[..., jax.Array], dtype: Any) -> Callable[..., jax.Array]:
    """Give the products of a function and of its own gradient rule the precision for this type.

    `default_precision` reaches the products of a function that JAX differentiates. One with a
    gradient rule of its own, such as a kernel, makes others when that rule is traced.
    """
    if product_precision(dtype) is None:
        return function

    @jax.custom_vjp
    def wrapped(*arguments: jax.Array) -> jax.Array:
        with default_precision(dtype):
            return function(*arguments)

    def forward(*arguments: jax.Array) -> tuple[jax.Array, Any]:
        with default_precision(dtype):
            return jax.vjp(function, *arguments)

    def backward(pull: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
        with default_precision(dtype):
            return pull(gradient)

    wrapped.defvjp(forward, backward)
    return wrapped
