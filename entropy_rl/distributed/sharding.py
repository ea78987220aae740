"""Where arrays lie on the devices: the mesh, a table of rules for parameters, and rows over the
data axes.

    mesh (data, fsdp, tensor)
      rows of a mini-batch    split over data and fsdp
      training parameters     split over fsdp and tensor, whole along data; optimizer moments like
      them
      decoding parameters     split over tensor alone: no step of decoding gathers weights

Each process decodes on a mesh of its own devices, so a group of the tensor axis lies within one
process, and rollouts of different processes do not wait for each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from entropy_rl.config.train import MeshConfig
from entropy_rl.lm_head.layout import HeadLayout
from entropy_rl.types import DATA_AXES, FSDP_AXIS, TENSOR_AXIS, Params, Policy

_AXES = (*DATA_AXES, TENSOR_AXIS)

# The end of a parameter's path -> how its last axes are split; axes before them, such as that of
# the layers, are whole.
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"embed_tokens/embedding|lm_head/kernel", (TENSOR_AXIS, FSDP_AXIS)),
    # For decoding, some are fused where the tensor axis has one device.
    (r"(q|k|v|qkv|gate|up|gate_up)_proj/kernel", (FSDP_AXIS, TENSOR_AXIS)),
    (r"(o|down)_proj/kernel", (TENSOR_AXIS, FSDP_AXIS)),
    (r"(q|k|v|qkv)_proj/bias", (TENSOR_AXIS,)),
    (r"(norm|layernorm)/scale|value_head/kernel", ()),
)
_OF_KV_HEADS = re.compile(r"(^|/)[kv]_proj/")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """The mesh that a config asks for.

    Args:
      config: The `mesh` section.
      devices: What to make it of; None for all devices of all processes.

    Returns:
      The mesh; None for a single device of a single process.

    Raises:
      ValueError: If the devices do not fill it, or a group of the tensor axis would span processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    processes = len({device.process_index for device in devices})
    sizes = _mesh_sizes(config, len(devices))
    used = math.prod(sizes)
    if processes > 1 and used != len(devices):
        raise ValueError(
            f"mesh: {_text(sizes)} are {used} devices; allowed: all {len(devices)} of the "
            f"{processes} processes"
        )
    if processes == used == 1:
        return None
    own = len(devices) // processes
    if processes > 1 and own % sizes[2]:
        raise ValueError(
            f"mesh.tensor: {sizes[2]} is not allowed; allowed: divisors of {own}, the devices of "
            "a process"
        )
    make = partial(jax.make_mesh, sizes, _AXES, axis_types=(AxisType.Auto,) * 3)
    # On the first devices if there are more. jax arranges them by how they are connected, where it
    # can.
    try:
        mesh = make(devices=devices[:used])
    except NotImplementedError:  # an axis is no product of physical ones
        mesh = None
    if mesh is None or (processes > 1 and not _rows_lie_in_order(mesh)):
        devices.sort(key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(devices[:used]).reshape(sizes), _AXES, axis_types=(AxisType.Auto,) * 3)
    return mesh


def _mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    sizes = (config.data, config.fsdp, config.tensor)
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % known == 0:
        return tuple(devices // known if size == -1 else size for size in sizes)
    if -1 in sizes or known > devices:
        raise ValueError(
            f"mesh: {_text(sizes)} does not fit on {devices} devices; allowed: a product "
            f"{'that divides them' if -1 in sizes else 'of at most so many'}"
        )
    return sizes


def _text(sizes: Sequence[int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in zip(_AXES, sizes, strict=True))


def _rows_lie_in_order(mesh: Mesh) -> bool:
    """Whether a tensor group has one process, and the rows of the first process come first."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return bool((owners == owners[..., :1]).all() and (np.diff(owners.reshape(-1)) >= 0).all())


def row_shards(mesh: Mesh | None) -> int:
    """Equal shards in which rows lie on the devices of a mesh."""
    return HeadLayout(mesh).size(*DATA_AXES)


def check_rows(mesh: Mesh | None, prompts: int, group_size: int, whole_groups: bool) -> None:
    """Checks that the rows of an update divide over the devices that share them.

    Args:
      mesh: The mesh; None for one device.
      prompts: Of an update.
      group_size: Rows of each.
      whole_groups: A group must not be divided.

    Raises:
      ValueError: If they do not.
    """
    if mesh is None:
        return
    shards = row_shards(mesh)
    unit = shards if whole_groups else shards // math.gcd(shards, group_size)
    if prompts % unit:
        raise ValueError(
            f"batching.mini_batch_prompts: {prompts} is not allowed; allowed: multiples of "
            f"{unit}, so that "
            f"the rows of an update divide over the {shards} shards of devices of the mesh; or "
            "another mesh"
        )


def partition_spec(
    path: str, shape: Sequence[int], mesh: Mesh, kv_heads: int | None = None
) -> PartitionSpec:
    """How a parameter, or a moment of the optimizer for it, is split over a mesh.

    An axis that a size does not divide is whole; so are KV heads that do not divide over the tensor
    axis.

    Args:
      path: Names joined by "/", such as `layers/self_attn/q_proj/kernel`, with anything before
        them.
      shape: Of the array.
      mesh: The mesh.
      kv_heads: K; None where they do not matter.

    Raises:
      ValueError: If no rule is for such a path.
    """
    if not shape:
        return PartitionSpec()  # a count
    axes = next(
        (axes for pattern, axes in _RULES if re.search(rf"(^|/|_)({pattern})$", path)), None
    )
    if axes is None:
        raise ValueError(f"{path}: no rule says how it is split over the mesh")
    whole_heads = bool(
        kv_heads and kv_heads % mesh.shape[TENSOR_AXIS] and _OF_KV_HEADS.search(path)
    )
    before = [None] * (len(shape) - len(axes))
    split = [
        None if size % mesh.shape[axis] or (axis == TENSOR_AXIS and whole_heads) else axis
        for axis, size in zip(axes, shape[len(before) :], strict=True)
    ]
    return PartitionSpec(*before, *split)


class Placement:
    """Where a run's arrays lie; without a mesh, everything is on the default device.

    Attributes:
      mesh: Of all devices; None for a single one.
      local_mesh: Of those of this process, on which it decodes.
    """

    def __init__(self, mesh: Mesh | None = None, kv_heads: int | None = None):
        """
        Args:
          mesh: From `make_mesh`.
          kv_heads: K of the model.
        """
        self.mesh, self._kv_heads = mesh, kv_heads
        self.local_mesh = None if mesh is None else _local_mesh(mesh)

    def of_params(self, tree: Any) -> Any:
        """The sharding of each leaf of parameters, of moments for them, or of a state with both."""
        return self._shardings(tree, (FSDP_AXIS, TENSOR_AXIS))

    def of_path(self, path: str, shape: Sequence[int]) -> NamedSharding:
        """The sharding of a training parameter with this path."""
        return NamedSharding(self.mesh, partition_spec(path, shape, self.mesh, self._kv_heads))

    def abstract(self, tree: Any) -> Any:
        """Shapes and types of parameters or of a state, and where they are to lie."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        if self.mesh is None:
            return shapes
        place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
        return jax.tree.map(place, shapes, self.of_params(shapes))

    def _shardings(self, tree: Any, axes: tuple[str, ...]) -> Any:
        def of_leaf(path: tuple, leaf: Any) -> NamedSharding:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            spec = partition_spec(name, leaf.shape, self.mesh, self._kv_heads)
            spec = PartitionSpec(*(axis if axis in axes else None for axis in spec))
            return NamedSharding(self.mesh, spec)

        return jax.tree_util.tree_map_with_path(of_leaf, tree)

    def constrain(self, tree: Any) -> Any:
        """Inside of a jitted function: these parameters, or this state, lie as `of_params` says."""
        return (
            tree
            if self.mesh is None
            else jax.lax.with_sharding_constraint(tree, self.of_params(tree))
        )

    def put_rows(self, tree: Any) -> Any:
        """Rows of this process, [B of it, ...] on the host, as a part of the rows of all processes.

        Args:
          tree: A nest of numpy arrays.

        Returns:
          The same with global arrays [B, ...]; those of the first process stand first.
        """
        if self.mesh is None:
            return tree
        rows = self.of_rows()
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(rows, np.asarray(x)), tree
        )

    def of_rows(self) -> NamedSharding:
        """The sharding of what `put_rows` returns; there must be a mesh."""
        return NamedSharding(self.mesh, PartitionSpec(DATA_AXES))

    def put_prompts(self, tree: Any) -> Any:
        """Prompts for the sampler of this process: split over its devices, or whole if they do not
        divide.
        """
        if self.mesh is None:
            return tree
        return jax.device_put(tree, self.of_prompts(len(jax.tree.leaves(tree)[0])))

    def of_prompts(self, prompts: int) -> NamedSharding:
        """The sharding of so many prompts in what `put_prompts` returns; there must be a mesh."""
        spec = (
            PartitionSpec() if prompts % row_shards(self.local_mesh) else PartitionSpec(DATA_AXES)
        )
        return NamedSharding(self.local_mesh, spec)

    @property
    def local_shards(self) -> int:
        """Equal shards in which the prompts of this process lie on its devices, if they divide."""
        return row_shards(self.local_mesh)

    def constrain_rows(self, tree: Any) -> Any:
        """Inside of a jitted function of this process: rows lie over its devices, heads of a cache
        as well.

        Left to itself, the compiler would keep a copy of all caches on every device.

        Args:
          tree: Leaves [rows, ...], of caches [rows, K, ..., ...], or numbers.
        """
        if self.mesh is None:
            return tree
        shards = row_shards(self.local_mesh)

        def constrain(x: jax.Array) -> jax.Array:
            if x.ndim == 0:
                return x
            heads = x.ndim == 4 and x.shape[1] % self.local_mesh.shape[TENSOR_AXIS] == 0
            spec = (DATA_AXES if x.shape[0] % shards == 0 else None, TENSOR_AXIS if heads else None)
            spec = PartitionSpec(*spec[: x.ndim])
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.local_mesh, spec))

        return jax.tree.map(constrain, tree)

    def make_to_decode(self, policy: Policy) -> Callable[[Params], Params]:
        """Builds `(params) -> decoding parameters` on the devices of this process: the sync of the
        sampler.

        Args:
          policy: The policy, made for the mesh.
        """
        cast = self.make_cast(policy)
        if self.mesh is None:
            return cast

        def local(x: jax.Array) -> jax.Array:
            sharding = NamedSharding(self.local_mesh, x.sharding.spec)
            pieces = {shard.device: shard.data for shard in x.addressable_shards}
            places = sharding.addressable_devices_indices_map(x.shape)
            return jax.make_array_from_single_device_arrays(
                x.shape, sharding, [pieces[d] for d in places]
            )

        return lambda params: jax.tree.map(local, cast(params))

    def make_cast(self, policy: Policy) -> Callable[[Params], Params]:
        """The jitted part of `make_to_decode`: decoding parameters on all devices, split over
        tensor.
        """
        if self.mesh is None:
            return jax.jit(policy.to_decode)

        @jax.jit
        def cast(params: Params) -> Params:
            decode = policy.to_decode(params)
            return jax.lax.with_sharding_constraint(decode, self.of_decode(decode))

        return cast

    def of_decode(self, tree: Any) -> Any:
        """The sharding of each leaf of decoding parameters, on all devices."""
        return self._shardings(tree, (TENSOR_AXIS,))


def move(tree: Any, memory: Literal["device", "pinned_host"]) -> Any:
    """Arrays in another memory, each split as it was."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(memory)), tree)


def _local_mesh(mesh: Mesh) -> Mesh:
    """The tensor groups of this process, as copies of the parameters side by side."""
    groups = mesh.devices.reshape(-1, mesh.shape[TENSOR_AXIS])
    own = [group for group in groups if group[0].process_index == jax.process_index()]
    return Mesh(np.array(own)[:, None], _AXES, axis_types=mesh.axis_types)
