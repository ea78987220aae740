"""Causal attention on a mesh with single-device kernels (shard_map)."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.lm_head.layout import pad_axis
from entropy_rl.types import DATA_AXES, TENSOR_AXIS


def over_mesh(
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mesh: Mesh | None,
) -> jax.Array:
    """Call an attention function on each device, for its own rows and heads.

    Rows are sharded over the data axes, heads over the tensor axis. KV heads are repeated, and
    rows are padded, to a multiple of the devices.

    Args:
      attend: (q, k, v) -> [B, T, H, h], for any number of rows and H divisible by K.
      q: [B, T, H, h].
      k: [B, T, K, h].
      v: [B, T, K, h].
      mesh: The mesh; None for one device.

    Returns:
      [B, T, H, h].

    Raises:
      ValueError: If the heads are not divisible by the mesh's tensor axis.
    """
    if mesh is None:
        return attend(q, k, v)
    k, v = (_repeat_heads(x, q.shape[2], mesh.shape[TENSOR_AXIS]) for x in (k, v))
    rows, devices = q.shape[0], math.prod(mesh.shape[axis] for axis in DATA_AXES)
    spec = PartitionSpec(DATA_AXES, None, TENSOR_AXIS)
    sharded = jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(spec, spec, spec),
        out_specs=spec,
        check_vma=False,  # kernels do not declare how their outputs vary over the mesh
    )
    return sharded(*jax.tree.map(lambda x: pad_axis(x, 0, devices), (q, k, v)))[:rows]


def _repeat_heads(x: jax.Array, heads: int, devices: int) -> jax.Array:
    """Repeat KV heads to a multiple of the devices of the tensor axis."""
    kv_heads = x.shape[2]
    repeats = devices // math.gcd(kv_heads, devices)
    if heads % (kv_heads * repeats):
        raise ValueError(
            f"attention: the mesh axis {TENSOR_AXIS} ({devices}) must divide the number of heads, "
            f"got {heads} query and {kv_heads} KV heads"
        )
    return x if repeats == 1 else jnp.repeat(x, repeats, axis=2)
