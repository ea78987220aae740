"""Ragged decode attention to a row's own cache: the kernel for GPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.models.attention.parts import MASKED, Part, merge_statistics
from entropy_rl.precision import product_precision

_BLOCK = 64  # columns
_MIN_QUERIES = 16  # rows of the smallest matrix product
_PROGRAMS = 512  # a few for each multiprocessor of a large GPU


def ragged_attention_gpu(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    first: jax.Array,
    length: jax.Array,
    *,
    splits: int | None = None,
    interpret: bool = False,
) -> Part:
    """`ragged_attention` on one NVIDIA GPU.

    A program processes the attended blocks of a row and KV head; with few rows, these are split
    over several programs (flash decoding).

    Args:
      q: [R, K, r, h].
      keys: [R, K, N, h].
      values: [R, K, N, h].
      first: int32[R].
      length: int32[R].
      splits: Programs per row and KV head; None for enough to occupy the device.
      interpret: Run the kernel in interpret mode.

    Returns:
      The part.
    """
    from jax.experimental import pallas as pl  # slow import, GPU only
    from jax.experimental.pallas import triton as plgpu

    rows, kv_heads, r, h = q.shape
    columns = keys.shape[2]
    queries = max(_MIN_QUERIES, pl.next_power_of_2(r))
    if splits is None:
        wanted = pl.next_power_of_2(pl.cdiv(_PROGRAMS, rows * kv_heads))
        splits = max(1, min(wanted, pl.cdiv(columns, _BLOCK)))
    scale, precision = h**-0.5, product_precision(keys.dtype)

    def kernel(q, k, v, first, length, out, highest, total):
        first, length, part = first[()], length[()], pl.program_id(2)
        low, high = first // _BLOCK, pl.cdiv(length, _BLOCK)
        blocks = pl.cdiv(jnp.maximum(high - low, 0), splits)
        start = low + part * blocks
        query = q[...]

        def body(i, carry):
            out, before, total = carry
            at = (start + i) * _BLOCK
            column = at + jnp.arange(_BLOCK)
            attended = (column >= first) & (column < length)
            block = (pl.ds(at, _BLOCK), slice(None))
            k_block = plgpu.load(k.at[block], mask=attended[:, None], other=0.0)
            scores = plgpu.dot(query, k_block, trans_b=True, precision=precision) * scale
            scores = jnp.where(attended[None], scores, MASKED)
            after = jnp.maximum(before, scores.max(-1))
            weights = jnp.where(attended[None], jnp.exp(scores - after[:, None]), 0.0)
            # Masked columns are not read: zero times NaN would be NaN.
            v_block = plgpu.load(v.at[block], mask=attended[:, None], other=0.0)
            old = jnp.exp(before - after)
            weighted = plgpu.dot(weights.astype(v_block.dtype), v_block, precision=precision)
            out = old[:, None] * out + weighted
            return out, after, old * total + weights.sum(-1)

        zeros = jnp.zeros((queries,), jnp.float32)
        carry = (jnp.zeros((queries, h), jnp.float32), zeros + MASKED, zeros)
        carry = jax.lax.fori_loop(0, jnp.clip(high - start, 0, blocks), body, carry)
        out[...], highest[...], total[...] = carry

    def own(*block):  # of a row and KV head
        return pl.BlockSpec((None, None, *block), lambda i, j, s: (i, j) + (0,) * len(block))

    def of_split(*block):
        return pl.BlockSpec(
            (None, None, None, *block), lambda i, j, s: (s, i, j) + (0,) * len(block)
        )

    number = pl.BlockSpec((None,), lambda i, j, s: (i,))
    statistic = jax.ShapeDtypeStruct((splits, rows, kv_heads, queries), jnp.float32)
    part = Part(
        *pl.pallas_call(
            kernel,
            grid=(rows, kv_heads, splits),
            in_specs=[own(queries, h), own(columns, h), own(columns, h), number, number],
            out_specs=[of_split(queries, h), of_split(queries), of_split(queries)],
            out_shape=[
                jax.ShapeDtypeStruct((*statistic.shape, h), jnp.float32),
                statistic,
                statistic,
            ],
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
            interpret=interpret,
            name="ragged_attention",
        )(
            jnp.pad(q, ((0, 0), (0, 0), (0, queries - r), (0, 0))),
            keys,
            values,
            jnp.maximum(first, 0),
            jnp.minimum(length, columns),
        )
    )
    return merge_statistics(jax.tree.map(lambda x: x[:, :, :, :r], part))
