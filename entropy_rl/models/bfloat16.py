"""Matrix products in bfloat16 in a form that XLA's CPU compiler is fast at.

It converts the factors of most bfloat16 products to float32. The numbers are those of the plain
form, up to the order of additions.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from entropy_rl.precision import product_precision


def contract(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """Sum of products over an axis of each factor, in the type of x.

    With a float32 result, a library computes the product, with AVX512-BF16 or AMX where the CPU has
    them, in about half the time of a float32 product. On accelerators, where sums are in float32
    anyway, that result would be written to memory and read again.

    Args:
      x: [..., D, ...].
      y: [..., D, ...], of the type of x.
      x_axis: Axis of x with size D.
      y_axis: Axis of y with size D.

    Returns:
      The other axes of x, then those of y.
    """
    plain = partial(
        jax.lax.dot_general,
        dimension_numbers=(((x_axis,), (y_axis,)), ((), ())),
        precision=product_precision(x.dtype),
    )
    if x.dtype != jnp.bfloat16:
        return plain(x, y)

    def on_cpu(x: jax.Array, y: jax.Array) -> jax.Array:
        return plain(x, y, preferred_element_type=jnp.float32).astype(x.dtype)

    return jax.lax.platform_dependent(x, y, cpu=on_cpu, default=plain)
