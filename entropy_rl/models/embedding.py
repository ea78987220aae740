"""The table of token embeddings, split over a mesh: looked up without gathering it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.types import DATA_AXES, FSDP_AXIS, TENSOR_AXIS


def look_up(table: jax.Array, ids: jax.Array, dtype: Any, mesh: Mesh | None = None) -> jax.Array:
    """Rows of the table.

    On a mesh a device has some words and a part of the hidden size. It looks up the tokens of its
    fsdp group in what it has, and the group exchanges parts of rows for whole ones: what travels is
    as large as the result, whatever the vocabulary.

    Args:
      table: [V, D]; on a mesh, as P("tensor", "fsdp") where the sizes divide.
      ids: int32[B, ...]; on a mesh split over the data axes, B being a multiple of their devices.
      dtype: Of the result.
      mesh: The mesh; None for one device.

    Returns:
      [B, ..., D], split like `ids`.
    """
    if mesh is None or math.prod(mesh.shape.values()) == 1:
        return jnp.take(table, ids, axis=0).astype(dtype)
    words, width = table.shape
    of_words = TENSOR_AXIS if words % mesh.shape[TENSOR_AXIS] == 0 else None
    of_width = FSDP_AXIS if width % mesh.shape[FSDP_AXIS] == 0 else None

    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        if of_width:
            ids = jax.lax.all_gather(ids, FSDP_AXIS, axis=0, tiled=True)
        if of_words:
            ids = ids - jax.lax.axis_index(TENSOR_AXIS) * table.shape[0]
            own = (ids >= 0) & (ids < table.shape[0])
            x = jnp.where(own[..., None], jnp.take(table, ids, axis=0, mode="clip"), 0).astype(
                dtype
            )
            x = jax.lax.psum(x, TENSOR_AXIS)
        else:
            x = jnp.take(table, ids, axis=0).astype(dtype)
        if of_width:
            x = jax.lax.all_to_all(x, FSDP_AXIS, split_axis=0, concat_axis=x.ndim - 1, tiled=True)
        return x

    rows = PartitionSpec(DATA_AXES)
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(of_words, of_width), rows), out_specs=rows
    )
    return run(table, ids)
