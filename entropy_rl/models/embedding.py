"""Token embeddings, sharded over vocab and hidden size, without gathering the table."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.types import DATA_AXES, FSDP_AXIS, TENSOR_AXIS


def embed_tokens(
    table: jax.Array, ids: jax.Array, dtype: Any, mesh: Mesh | None = None
) -> jax.Array:
    """Look up token embeddings.

    On a mesh, a device holds a shard of the vocab entries and of the hidden size. It looks up the
    tokens of its fsdp group in its shard, followed by a psum over tensor and an all-to-all over
    fsdp: the communication is proportional to the result, not to the vocabulary.

    Args:
      table: [V, D]; on a mesh, P("tensor", "fsdp") where the sizes are divisible.
      ids: int32[B, ...]; on a mesh, sharded over the data axes, with B a multiple of their devices.
      dtype: Type of the result.
      mesh: The mesh; None for one device.

    Returns:
      [B, ..., D], sharded like `ids`.
    """
    if mesh is None or math.prod(mesh.shape.values()) == 1:
        return jnp.take(table, ids, axis=0).astype(dtype)
    vocab_size, width = table.shape
    vocab_axis = TENSOR_AXIS if vocab_size % mesh.shape[TENSOR_AXIS] == 0 else None
    width_axis = FSDP_AXIS if width % mesh.shape[FSDP_AXIS] == 0 else None

    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        if width_axis:
            ids = jax.lax.all_gather(ids, FSDP_AXIS, axis=0, tiled=True)
        if vocab_axis:
            ids = ids - jax.lax.axis_index(TENSOR_AXIS) * table.shape[0]
            own = (ids >= 0) & (ids < table.shape[0])
            x = jnp.where(own[..., None], jnp.take(table, ids, axis=0, mode="clip"), 0).astype(
                dtype
            )
            x = jax.lax.psum(x, TENSOR_AXIS)
        else:
            x = jnp.take(table, ids, axis=0).astype(dtype)
        if width_axis:
            x = jax.lax.all_to_all(x, FSDP_AXIS, split_axis=0, concat_axis=x.ndim - 1, tiled=True)
        return x

    rows = PartitionSpec(DATA_AXES)
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(vocab_axis, width_axis), rows), out_specs=rows
    )
    return run(table, ids)
