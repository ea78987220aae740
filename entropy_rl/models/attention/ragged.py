"""Ragged decode attention to a row's own cache: kernels that read filled columns only."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.lm_head.layout import pad_axis
from entropy_rl.models.attention.parts import MASKED, Part
from entropy_rl.models.attention.ragged_gpu import ragged_attention_gpu
from entropy_rl.precision import product_precision
from entropy_rl.types import DATA_AXES, TENSOR_AXIS

_LANES = 128
_BLOCK_BYTES = 512 * 1024  # of keys; see _block_size


def ragged_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    first: jax.Array,
    length: jax.Array,
    *,
    mesh: Mesh | None = None,
    block: int | None = None,
    interpret: bool = False,
) -> Part:
    """`attention_part` over columns first, ..., length - 1 of each row; other columns are not read.

    Kernels for TPUs and GPUs: columns are processed in blocks, and fully masked blocks are neither
    fetched nor computed. An empty row (length <= first) costs nothing; on a mesh, rows are padded
    with empty ones.

    Args:
      q: [R, K, r, h].
      keys: [R, K, N, h].
      values: [R, K, N, h]. The content of masked columns, including NaN, has no effect.
      first: int32[R], first attended column.
      length: int32[R], last attended column + 1.
      mesh: The mesh that the rows (data axes) and the KV heads (tensor axis) are sharded over.
      block: Columns per block on TPUs, a multiple of 128; None for about half a MiB of keys.
      interpret: Run the TPU kernel in interpret mode.

    Returns:
      The part.

    Raises:
      ValueError: If the mesh's tensor axis does not divide the number of KV heads.
    """
    on_tpu = partial(_ragged_attention, block=block, interpret=interpret)

    def run(*arrays: jax.Array) -> Part:
        if interpret:
            return on_tpu(*arrays)
        return jax.lax.platform_dependent(*arrays, tpu=on_tpu, cuda=ragged_attention_gpu)

    if mesh is None:
        return run(q, keys, values, first, length)
    kv_heads, tensor = q.shape[1], mesh.shape[TENSOR_AXIS]
    if kv_heads % tensor:
        raise ValueError(
            f"ragged_attention: the number of KV heads must be a multiple of the mesh axis "
            f"{TENSOR_AXIS} ({tensor}), got {kv_heads}"
        )
    rows, heads = PartitionSpec(DATA_AXES), PartitionSpec(DATA_AXES, TENSOR_AXIS)
    sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(heads, heads, heads, rows, rows),
        out_specs=Part(heads, heads, heads),
        check_vma=False,  # kernels do not declare how their outputs vary over the mesh
    )
    shards = math.prod(mesh.shape[axis] for axis in DATA_AXES)
    part = sharded(*(pad_axis(x, 0, shards) for x in (q, keys, values, first, length)))
    return jax.tree.map(lambda x: x[: q.shape[0]], part)


def _block_size(columns: int, bytes_per_column: int) -> int:
    """Return the columns per block, enough to hide the overhead of a grid step.

    A step costs about 0.35 us; a MiB of keys and values takes 0.4 us (v5p) to 1.3 us (v5e) to read.
    Larger blocks read more unused columns at the end of a row.
    """
    block = _LANES * max(1, _BLOCK_BYTES // (_LANES * bytes_per_column))
    return columns if columns <= block else block


def _fetched_blocks(
    first: jax.Array, length: jax.Array, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the row to read from and its first and last block, int32[R] each.

    The pipeline fetches a block if it differs from that of the previous step. An empty row names
    the last block of the previous non-empty row, which is already loaded.
    """
    alive = length > first
    row = jnp.where(alive, jnp.arange(first.shape[0], dtype=jnp.int32), -1)
    row = jnp.maximum(jax.lax.cummax(row), 0)
    last = jnp.maximum(length[row] - 1, 0) // block
    return row, jnp.where(alive, first // block, last), last


def _ragged_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    first: jax.Array,
    length: jax.Array,
    *,
    block: int | None,
    interpret: bool,
) -> Part:
    from jax.experimental import pallas as pl  # slow import, TPU only
    from jax.experimental.pallas import tpu as pltpu

    rows, kv_heads, r, h = q.shape
    columns = keys.shape[2]
    if block is None:
        block = _block_size(columns, kv_heads * h * keys.dtype.itemsize)
    first, length = jnp.maximum(first, 0), jnp.minimum(length, columns)

    def own(i, j, *_):
        return (i, 0, 0, 0)

    def fetched(i, j, first, length, row, low, high):
        return (row[i], 0, jnp.clip(j, low[i], high[i]), 0)

    def kernel(first, length, row, low, high, q, k, v, out, highest, total):
        i, j = pl.program_id(0), pl.program_id(1)

        @pl.when(j == 0)
        def _():
            out[...] = jnp.zeros_like(out)
            highest[...] = jnp.full_like(highest, MASKED)
            total[...] = jnp.zeros_like(total)

        @pl.when((length[i] > first[i]) & (j >= low[i]) & (j <= high[i]))
        def _():
            for head in range(kv_heads):
                part = _block_part(
                    q[0, head], k[0, head], v[0, head], j * block, first[i], length[i]
                )
                before = highest[0, head]  # [r, 1]
                after = jnp.maximum(before, part.max)
                old, new = jnp.exp(before - after), jnp.exp(part.max - after)
                out[0, head] = old * out[0, head] + new * part.out
                total[0, head] = old * total[0, head] + new * part.sum
                highest[0, head] = after

    statistic = jax.ShapeDtypeStruct((rows, kv_heads, r, 1), jnp.float32)
    spec = partial(pl.BlockSpec, index_map=own)
    columns_spec = pl.BlockSpec((1, kv_heads, block, h), fetched)
    out, highest, total = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(rows, pl.cdiv(columns, block)),
            in_specs=[spec((1, kv_heads, r, h)), columns_spec, columns_spec],
            out_specs=[
                spec((1, kv_heads, r, h)),
                spec((1, kv_heads, r, 1)),
                spec((1, kv_heads, r, 1)),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(q.shape, jnp.float32), statistic, statistic],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="ragged_attention",
    )(first, length, *_fetched_blocks(first, length, block), q, keys, values)
    return Part(out, highest[..., 0], total[..., 0])


def _block_part(q: Any, k: Any, v: Any, offset: Any, first: Any, length: Any) -> Part:
    """Part of one block and KV head: q [r, h], k and v [n, h]; statistics f32[r, 1]."""
    # By default the MXU multiplies float32 in bfloat16.
    exact = dict(
        precision=product_precision(q.dtype),
        preferred_element_type=jnp.float32,
    )
    scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), **exact) * q.shape[-1] ** -0.5

    def attended(shape, axis):
        column = offset + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return (column >= first) & (column < length)

    highest = jnp.where(attended(scores.shape, 1), scores, MASKED).max(-1, keepdims=True)
    weights = jnp.where(attended(scores.shape, 1), jnp.exp(scores - highest), 0.0)
    v = jnp.where(attended(v.shape, 0), v, 0)  # zero times NaN would be NaN
    out = jax.lax.dot_general(weights.astype(v.dtype), v, (((1,), (0,)), ((), ())), **exact)
    return Part(out, highest, weights.sum(-1, keepdims=True))
