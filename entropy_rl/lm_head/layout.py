"""Sharding of tokens and LM head weights on a mesh, and the collectives that it needs.

    tokens [B, ...]     sharded over data and fsdp along the leading axis, not along D
    weights [V, D]      P("tensor", "fsdp"): all-gathered over fsdp once; V stays sharded

The devices of a tensor group have the same tokens, hence loops over tokens of the same length, and
may use collectives inside them. Other devices may not: their loops differ in length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.types import DATA_AXES, FSDP_AXIS, TENSOR_AXIS


@dataclasses.dataclass(frozen=True)
class HeadLayout:
    """Sharding on a mesh; without one, nothing is sharded and collectives are the identity.

    An axis of size 1 is treated as absent and needs no collective.

    Attributes:
      mesh: Mesh with some of the axes "data", "fsdp" and "tensor"; None for a single device.
    """

    mesh: Mesh | None = None

    def size(self, *axes: str) -> int:
        """Return the product of the axes' sizes."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape.get(axis, 1) for axis in axes)

    def split(self, *axes: str) -> tuple[str, ...]:
        """Return those of the axes with more than one device."""
        return tuple(axis for axis in axes if self.size(axis) > 1)

    @property
    def tokens(self) -> PartitionSpec:
        """Sharding of the tokens."""
        return PartitionSpec(self.split(*DATA_AXES) or None)

    @property
    def weights(self) -> PartitionSpec:
        """Sharding of the head weights and their gradient."""
        return PartitionSpec(self.split(TENSOR_AXIS) or None, self.split(FSDP_AXIS) or None)

    def run(self, local: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """Map a per-device function over global arrays (shard_map)."""
        if self.size(*DATA_AXES, TENSOR_AXIS) == 1:
            return local
        return jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    # --- for use inside `run` ---

    def zeros(self, shape: tuple[int, ...], dtype: Any, *axes: str) -> jax.Array:
        """Return zeros that vary over the axes: the initial value of a loop."""
        axes = self.split(*axes)
        zeros = jnp.zeros(shape, dtype)
        return jax.lax.pcast(zeros, axes, to="varying") if axes else zeros

    def first_vocab_id(self, entries: int) -> jax.Array | int:
        """Return the first token id of this device's vocab shard of `entries` entries."""
        return jax.lax.axis_index(TENSOR_AXIS) * entries if self.split(TENSOR_AXIS) else 0

    def max_over_vocabulary(self, x: jax.Array) -> jax.Array:
        """Elementwise maximum over vocab shards."""
        axes = self.split(TENSOR_AXIS)
        return jax.lax.pmax(x, axes) if axes else x

    def sum_over_vocabulary(self, tree: Any) -> Any:
        """Elementwise sum over vocab shards."""
        axes = self.split(TENSOR_AXIS)
        return jax.lax.psum(tree, axes) if axes else tree

    def gather_over_vocabulary(self, tree: Any) -> Any:
        """All-gathers arrays [C, K] over vocab shards to [C, shards * K], in the order of ids."""
        if not self.split(TENSOR_AXIS):
            return tree
        return jax.lax.all_gather(tree, TENSOR_AXIS, axis=1, tiled=True)

    def sum_over_tokens(self, x: jax.Array) -> jax.Array:
        """Elementwise sum over token shards."""
        axes = self.split(*DATA_AXES)
        return jax.lax.psum(x, axes) if axes else x

    def gather_weights(self, weights: jax.Array, width: int) -> jax.Array:
        """All-gathers weights [V', D'] over fsdp to [V', D], without padding of D."""
        if self.split(FSDP_AXIS):
            weights = jax.lax.all_gather(weights, FSDP_AXIS, axis=1, tiled=True)
        return weights[:, :width]

    def scatter_gradient(self, gradient: jax.Array, padded: int) -> jax.Array:
        """Sum gradients [V', D] over token shards, and reduce-scatters them over fsdp."""
        gradient = jnp.pad(gradient, ((0, 0), (0, padded - gradient.shape[1])))
        if self.split(FSDP_AXIS):  # first, which makes the sum below smaller
            gradient = jax.lax.psum_scatter(gradient, FSDP_AXIS, scatter_dimension=1, tiled=True)
        rest = self.split(*(axis for axis in DATA_AXES if axis != FSDP_AXIS))
        return jax.lax.psum(gradient, rest) if rest else gradient


def pad_axis(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Zero-pads an axis to a multiple."""
    missing = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x
