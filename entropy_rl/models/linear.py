"""Dense layers, with a gradient rule that is faster on CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from entropy_rl.models.remat import WEIGHT_PRODUCTS


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel in the type of x; ∂kernel = xᵀ @ ∂y, summed over tokens in float32.

    JAX's own rule is (∂yᵀ @ x)ᵀ. On CPU it transposes ∂y and everything that ∂y is computed from,
    which takes longer than the product; with this rule, the gradient of an MLP is 1.6x faster.

    Args:
      x: [..., D].
      kernel: [D, E], of any float type.

    Returns:
      [..., E].
    """
    return jnp.matmul(x, kernel.astype(x.dtype))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    dx = jax.lax.dot_general(dy, kernel.astype(x.dtype), (((dy.ndim - 1,), (1,)), ((), ())))
    tokens = tuple(range(x.ndim - 1))
    d_kernel = jax.lax.dot_general(
        x, dy, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32
    )
    return dx, d_kernel.astype(kernel.dtype)


linear.defvjp(_forward, _backward)


class Dense(nn.Module):
    """`linear` with an optional bias; parameter names are those of `nn.Dense`.

    Attributes:
      features: E.
      use_bias: Add a bias.
      dtype: Type of the computation.
      kernel_init: Initializer of the kernel.
    """

    features: int
    use_bias: bool
    dtype: Any
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = checkpoint_name(linear(x.astype(self.dtype), kernel), WEIGHT_PRODUCTS)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
