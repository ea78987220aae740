"""bfloat16 products: the numbers of a float32 sum, rounded once, and a plain product elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.models.bfloat16 import contract
from entropy_rl.models.linear import linear
from entropy_rl.models.quantized import dequantize_kernel, quantize_kernel, quantized_linear


def ordinals(x: jax.Array) -> np.ndarray:
    """Positions of bfloat16 numbers in their order: neighbors differ by 1."""
    bits = np.asarray(x.view(jnp.int16)).astype(np.int32)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def draw(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape).astype(jnp.bfloat16)


@pytest.mark.parametrize("y_axis", [0, 1])
def test_a_product_is_rounded_once(key, y_axis):
    """A sum in bfloat16, with 512 terms of both signs, would be off by many units."""
    x, y = draw(key, 3, 5, 512), draw(jax.random.fold_in(key, 1), 512, 24)
    found = jax.jit(lambda x, y: contract(x, y, 2, y_axis))(x, y if y_axis == 0 else y.T)
    exact = np.einsum("abd,de->abe", *(np.asarray(a, np.float64) for a in (x, y)))
    assert found.dtype == jnp.bfloat16 and found.shape == (3, 5, 24)
    assert np.abs(ordinals(found) - ordinals(jnp.asarray(exact, jnp.bfloat16))).max() <= 1


def test_float32_is_the_plain_product_to_the_bit(key):
    x, y = (jax.random.normal(k, (64, 64)) for k in jax.random.split(key))
    np.testing.assert_array_equal(jax.jit(lambda: contract(x, y, 1, 0))(), jax.jit(lambda: x @ y)())


@pytest.mark.parametrize("form", ["dense", "int8"])
def test_both_directions_have_a_float32_result_on_cpu_alone(key, form):
    """The compiler of a CPU computes in bfloat16 only with a float32 result; on others it would be
    written to memory and read again."""
    kernel = jax.random.normal(key, (64, 32))
    layer, weights = linear, kernel
    if form == "int8":
        layer, weights = quantized_linear, quantize_kernel(kernel, "int8")
        kernel = dequantize_kernel(weights)
    x, dy = draw(key, 8, 64), draw(key, 8, 32)

    def both(x, dy):
        y, pull = jax.vjp(lambda x: layer(x, weights), x)
        return y, pull(dy)[0]

    def products(platform: str) -> list[bool]:
        text = jax.jit(both).trace(x, dy).lower(lowering_platforms=(platform,)).as_text()
        lines = [line for line in text.splitlines() if "dot_general" in line]
        return [line.rstrip().split("->")[-1].strip().endswith("xf32>") for line in lines]

    assert products("cpu") == [True, True]
    assert products("cuda") == products("tpu") == [False, False]
    y, dx = jax.jit(both)(x, dy)
    half = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(y.astype(jnp.float32), x @ half, rtol=2**-7, atol=1e-4)
    np.testing.assert_allclose(dx.astype(jnp.float32), dy @ half.T, rtol=2**-7, atol=1e-4)
