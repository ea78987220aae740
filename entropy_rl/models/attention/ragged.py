"""The part of an attention that is a row's own cache, by kernels that read what is filled: that
for TPUs.
"""

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
    """`attention_part` over the columns first, ..., length - 1 of each row, which reads no others.

    Kernels for TPUs and GPUs: the columns go through fast memory in blocks, and a block in which a
    row sees nothing is neither fetched nor computed. A row with nothing to see (length <= first)
    costs nothing; rows that do not divide over a mesh are filled up with such.

    Args:
      q: [R, K, r, h].
      keys: [R, K, N, h].
      values: [R, K, N, h]. What stands in columns that are not seen, NaN included, has no effect.
      first: int32[R], the first column seen.
      length: int32[R], one more than the last column seen.
      mesh: The mesh that the rows (data axes) and the KV heads (tensor axis) are sharded over.
      block: Columns per block on TPUs, a multiple of 128; None for about half a MiB of keys.
      interpret: Run the kernel for TPUs without one, slowly.

    Returns:
      The part.

    Raises:
      ValueError: If the KV heads do not divide over the mesh.
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
            f"ragged_attention: {kv_heads} KV heads do not divide over the {tensor} devices of "
            "the mesh axis "
            f"{TENSOR_AXIS}; allowed: multiples of {tensor}"
        )
    rows, heads = PartitionSpec(DATA_AXES), PartitionSpec(DATA_AXES, TENSOR_AXIS)
    sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(heads, heads, heads, rows, rows),
        out_specs=Part(heads, heads, heads),
        check_vma=False,  # kernels do not say how their outputs vary over the mesh
    )
    shards = math.prod(mesh.shape[axis] for axis in DATA_AXES)
    part = sharded(*(pad_axis(x, 0, shards) for x in (q, keys, values, first, length)))
    return jax.tree.map(lambda x: x[: q.shape[0]], part)


def _block_size(columns: int, bytes_per_column: int) -> int:
    """Columns per block: so many that reading them takes longer than starting a step of the grid.

    A step costs some 0.35 us; a MiB of keys and values takes 0.4 us (v5p) to 1.3 us (v5e) to read.
    More would be read in vain at the end of a row.
    """
    block = _LANES * max(1, _BLOCK_BYTES // (_LANES * bytes_per_column))
    return columns if columns <= block else block


def _fetched_blocks(
    first: jax.Array, length: jax.Array, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The row to read from and its first and last block, int32[R] each.

    The pipeline fetches a block when it is another than that of the step before. A row that sees
    nothing names the last block of the row before it that sees something, which is there already.
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
    from jax.experimental import pallas as pl  # takes a second, for TPUs only
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
    """The part of one block and KV head: q [r, h], k and v [n, h]; statistics f32[r, 1]."""
    # The MXU multiplies float32 as bfloat16 unless it is told otherwise.
    exact = dict(
        precision=jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    scores = jax.lax.dot_general(q, k, (((1,), (1,)), ((), ())), **exact) * q.shape[-1] ** -0.5

    def seen(shape, axis):
        column = offset + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return (column >= first) & (column < length)

    highest = jnp.where(seen(scores.shape, 1), scores, MASKED).max(-1, keepdims=True)
    weights = jnp.where(seen(scores.shape, 1), jnp.exp(scores - highest), 0.0)
    v = jnp.where(seen(v.shape, 0), v, 0)  # zero times NaN would be NaN
    out = jax.lax.dot_general(weights.astype(v.dtype), v, (((1,), (0,)), ((), ())), **exact)
    return Part(out, highest, weights.sum(-1, keepdims=True))
