"""How tokens and the weights of the head lie on a mesh, and the few collectives that this costs.

    tokens [B, ...]     split over data and fsdp by their leading axis; whole in the hidden size
    weights [V, D]      P("tensor", "fsdp"): gathered over fsdp once, the vocabulary stays split
    over tensor

The devices of a tensor group have the same tokens. So they run through a loop over these equally
often and may talk to each other in it; devices with other tokens may not, as their loops end at
other times.
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
    """The layout on a mesh; without one nothing is split and every collective is the identity.

    An axis with a single device counts as absent: it costs no collective.

    Attributes:
      mesh: With the axes "data", "fsdp" and "tensor", or some of them; None for a single device.
    """

    mesh: Mesh | None = None

    def size(self, *axes: str) -> int:
        """Devices along these axes together."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape.get(axis, 1) for axis in axes)

    def split(self, *axes: str) -> tuple[str, ...]:
        """Those of the axes that have more than one device."""
        return tuple(axis for axis in axes if self.size(axis) > 1)

    @property
    def tokens(self) -> PartitionSpec:
        """Where the tokens are."""
        return PartitionSpec(self.split(*DATA_AXES) or None)

    @property
    def weights(self) -> PartitionSpec:
        """Where the weights of the head, and their gradient, are."""
        return PartitionSpec(self.split(TENSOR_AXIS) or None, self.split(FSDP_AXIS) or None)

    def run(self, local: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """The function of what each device has, as one of the whole arrays."""
        if self.size(*DATA_AXES, TENSOR_AXIS) == 1:
            return local
        return jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    # --- for use inside of `run`
    # ---------------------------------------------------------------------------

    def zeros(self, shape: tuple[int, ...], dtype: Any, *axes: str) -> jax.Array:
        """Zeros to which each device along the axes adds its own: the start of a loop."""
        axes = self.split(*axes)
        zeros = jnp.zeros(shape, dtype)
        return jax.lax.pcast(zeros, axes, to="varying") if axes else zeros

    def first_word(self, words: int) -> jax.Array | int:
        """The number of the first word of the vocabulary that this device has, of so many each."""
        return jax.lax.axis_index(TENSOR_AXIS) * words if self.split(TENSOR_AXIS) else 0

    def max_over_vocabulary(self, x: jax.Array) -> jax.Array:
        """Elementwise, over the parts of the vocabulary."""
        axes = self.split(TENSOR_AXIS)
        return jax.lax.pmax(x, axes) if axes else x

    def sum_over_vocabulary(self, tree: Any) -> Any:
        """Elementwise, over the parts of the vocabulary."""
        axes = self.split(TENSOR_AXIS)
        return jax.lax.psum(tree, axes) if axes else tree

    def sum_over_tokens(self, x: jax.Array) -> jax.Array:
        """Elementwise, over the devices with other tokens."""
        axes = self.split(*DATA_AXES)
        return jax.lax.psum(x, axes) if axes else x

    def gather_weights(self, weights: jax.Array, width: int) -> jax.Array:
        """[V', D'] of a device -> [V', D] of its tensor group; D' is padded where D does not
        divide.
        """
        if self.split(FSDP_AXIS):
            weights = jax.lax.all_gather(weights, FSDP_AXIS, axis=1, tiled=True)
        return weights[:, :width]

    def scatter_gradient(self, gradient: jax.Array, padded: int) -> jax.Array:
        """The gradient [V', D] by a device's tokens -> that by all tokens, of the weights that it
        has.
        """
        gradient = jnp.pad(gradient, ((0, 0), (0, padded - gradient.shape[1])))
        if self.split(FSDP_AXIS):  # first: what is left to sum is smaller by that factor
            gradient = jax.lax.psum_scatter(gradient, FSDP_AXIS, scatter_dimension=1, tiled=True)
        rest = self.split(*(axis for axis in DATA_AXES if axis != FSDP_AXIS))
        return jax.lax.psum(gradient, rest) if rest else gradient


def pad_axis(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Appends zeros until the length of the axis is a multiple."""
    missing = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)]) if missing else x
