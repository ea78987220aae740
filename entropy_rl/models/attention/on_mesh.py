"""Causal attention of whole rows over a mesh, by a kernel that runs on each device by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.lm_head.layout import pad_axis
from entropy_rl.types import DATA_AXES, TENSOR_AXIS


def over_mesh(
    attend: Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array | None,
    mesh: Mesh | None,
) -> jax.Array:
    """Calls an attention on each device for rows and heads of its own.

    Rows lie over the data axes, heads over the tensor axis. KV heads that do not divide over it are
    repeated until they do, and rows that do not are filled up.

    Args:
      attend: (q, k, v, lengths) -> [B, T, H, h], of any rows, and heads that divide.
      q: [B, T, H, h].
      k: [B, T, K, h].
      v: [B, T, K, h].
      lengths: int32[B] or None.
      mesh: The mesh; None for one device.

    Returns:
      [B, T, H, h].

    Raises:
      ValueError: If the heads do not divide over the mesh.
    """
    if mesh is None:
        return attend(q, k, v, lengths)
    k, v = (_repeat_heads(x, q.shape[2], mesh.shape[TENSOR_AXIS]) for x in (k, v))
    rows, devices = q.shape[0], math.prod(mesh.shape[axis] for axis in DATA_AXES)
    spec = PartitionSpec(DATA_AXES, None, TENSOR_AXIS)
    sharded = jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(spec, spec, spec, PartitionSpec(DATA_AXES)),
        out_specs=spec,
        check_vma=False,  # kernels do not say how their outputs vary over the mesh
    )
    return sharded(*jax.tree.map(lambda x: pad_axis(x, 0, devices), (q, k, v, lengths)))[:rows]


def _repeat_heads(x: jax.Array, heads: int, devices: int) -> jax.Array:
    """Repeats KV heads until they divide over the devices of the tensor axis."""
    kv_heads = x.shape[2]
    repeats = devices // math.gcd(kv_heads, devices)
    if heads % (kv_heads * repeats):
        raise ValueError(
            f"attention: {heads} query and {kv_heads} KV heads do not divide over the {devices} "
            f"devices of the mesh axis {TENSOR_AXIS}"
        )
    return x if repeats == 1 else jnp.repeat(x, repeats, axis=2)
