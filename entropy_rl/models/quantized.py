"""Quantized kernels of a frozen base, which are dequantized where they are used.

    int8   W ≈ q s       q in -127 .. 127, s = max |W| / 127 of a column
    nf4    W ≈ c[q] s    c the 16 values of NormalFloat (arXiv 2305.14314), s = max |W| of 64 rows
                         of a column

A kernel [in, out] is replaced by the leaves `kernel_int8` [in, out], or `kernel_nf4` [in / 2, out]
with two codes in a byte, and `kernel_scale`. All of them have the columns of the kernel, so that
kernels with the same input can be concatenated as they are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from entropy_rl.models.bfloat16 import contract
from entropy_rl.types import Params

KERNEL, INT8, NF4, SCALE = "kernel", "kernel_int8", "kernel_nf4", "kernel_scale"
_CODES = {"int8": INT8, "nf4": NF4}
NF4_BLOCK = 64  # rows that share a scale
# Quantiles of a normal distribution, with an exact 0: arXiv 2305.14314, appendix E.
NF4_VALUES = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
# Bytes of a parameter and its part of a scale.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / NF4_BLOCK}
_PROJECTION = "_proj"  # how the names of the matrices of a layer end


def quantize_kernel(kernel: jax.Array, kind: str) -> dict[str, jax.Array]:
    """Quantize a kernel.

    Args:
      kernel: [..., in, out], of any float type.
      kind: "int8" or "nf4".

    Returns:
      For "int8", `kernel_int8` int8[..., in, out] and `kernel_scale` f32[..., 1, out]; for "nf4",
      `kernel_nf4` uint8[..., in / 2, out] and `kernel_scale` f32[..., in / 64, out].

    Raises:
      ValueError: If the rows are no multiple of 64, for "nf4".
    """
    x = kernel.astype(jnp.float32)
    if kind == "int8":
        scale = jnp.max(jnp.abs(x), axis=-2, keepdims=True) / 127
        q = jnp.round(x / jnp.where(scale > 0, scale, 1))
        return {INT8: q.astype(jnp.int8), SCALE: scale}
    *before, rows, columns = x.shape
    if rows % NF4_BLOCK:
        raise ValueError(
            f"model.lora.base_dtype: must be int8, bfloat16 or float32 for matrices of {rows} "
            f"rows, which are no multiple of {NF4_BLOCK}, got 'nf4'"
        )
    blocks = x.reshape(*before, rows // NF4_BLOCK, NF4_BLOCK, columns)
    scale = jnp.max(jnp.abs(blocks), axis=-2)
    middles = (NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2
    unit = blocks / jnp.where(scale > 0, scale, 1)[..., None, :]
    codes = jnp.searchsorted(middles, unit).astype(jnp.uint8)
    codes = codes.reshape(*before, rows // 2, 2, columns)
    return {NF4: codes[..., 0, :] * 16 + codes[..., 1, :], SCALE: scale}


def dequantize_kernel(leaves: dict[str, jax.Array]) -> jax.Array:
    """Return the kernel that `quantize_kernel` approximates, f32[..., in, out]."""
    scale = leaves[SCALE]
    if INT8 in leaves:
        return leaves[INT8].astype(jnp.float32) * scale
    packed = leaves[NF4]
    *before, half, columns = packed.shape
    codes = jnp.stack([packed // 16, packed % 16], axis=-2)
    values = jnp.take(jnp.asarray(NF4_VALUES), codes.astype(jnp.int32), axis=0)
    blocks = values.reshape(*before, 2 * half // NF4_BLOCK, NF4_BLOCK, columns)
    return (blocks * scale[..., None, :]).reshape(*before, 2 * half, columns)


@jax.custom_vjp
def quantized_linear(x: jax.Array, leaves: dict[str, jax.Array]) -> jax.Array:
    """x @ kernel in the type of x; the kernel has no gradient.

    The backward pass dequantizes it again, rather than keeping it from the forward pass.

    Args:
      x: [..., in].
      leaves: Of a kernel [in, out].

    Returns:
      [..., out].
    """
    return contract(x, dequantize_kernel(leaves).astype(x.dtype), x.ndim - 1, 0)


def _forward(x: jax.Array, leaves: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    return quantized_linear(x, leaves), leaves


def _backward(leaves: dict[str, jax.Array], dy: jax.Array) -> tuple[jax.Array, None]:
    kernel = dequantize_kernel(leaves).astype(dy.dtype)
    return contract(dy, kernel, dy.ndim - 1, 1), None


quantized_linear.defvjp(_forward, _backward)


# --------------------------------------------------------------------------------------------------
# Parameters of a model
# --------------------------------------------------------------------------------------------------


def float_type(dtype: str) -> Any:
    """Return the type of what is not quantized in a base: bfloat16 beside quantized kernels."""
    return jnp.dtype("bfloat16" if dtype in _CODES else dtype)


def store(params: Params, dtype: str) -> Params:
    """Convert the parameters of a base to the type in which they are stored.

    Args:
      params: The parameters, quantized or not.
      dtype: "float32", "bfloat16", "int8" or "nf4"; the last two for the kernels of the layers'
        matrices, with bfloat16 for all others.

    Returns:
      The parameters; those that have their type are not copied.
    """
    flat = traverse_util.flatten_dict(params)
    if any(path[-1] == _CODES.get(dtype) for path in flat):
        return params
    flat = traverse_util.flatten_dict(dequantize(params))
    found: dict[tuple[str, ...], jax.Array] = {}
    for path, x in flat.items():
        if dtype in _CODES and path[-1] == KERNEL and path[-2].endswith(_PROJECTION):
            leaves = jax.jit(quantize_kernel, static_argnums=1)(x, dtype)
            found |= {(*path[:-1], name): leaf for name, leaf in leaves.items()}
        else:
            wanted = float_type(dtype)
            found[path] = x if x.dtype == wanted else x.astype(wanted)
    return traverse_util.unflatten_dict(found)


def dequantize(params: Params) -> Params:
    """Return parameters with float32 kernels in the place of quantized ones."""
    flat = dict(traverse_util.flatten_dict(params))
    for path in [path for path in flat if path[-1] in (INT8, NF4)]:
        scale = (*path[:-1], SCALE)
        leaves = {path[-1]: flat.pop(path), SCALE: flat.pop(scale)}
        flat[(*path[:-1], KERNEL)] = dequantize_kernel(leaves)
    return traverse_util.unflatten_dict(flat)


def cast_floats(params: Params, dtype: Any) -> Params:
    """Cast all but codes and scales of quantized kernels."""

    def cast(path: tuple, x: jax.Array) -> jax.Array:
        return x if path[-1].key in (INT8, NF4, SCALE) else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
