"""Mesh, partition rules of parameters, and sharding of rows.

    mesh (data, fsdp, tensor)
      rows of a mini-batch    sharded over data and fsdp
      training parameters     sharded over fsdp and tensor, replicated over data; likewise moments
      decoding parameters     sharded over tensor only: decode steps do not gather weights

Each process decodes on a mesh of its own devices, so a tensor group is within one process, and the
rollouts of different processes do not wait for each other.
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

from entropy_rl.config.common import MeshConfig
from entropy_rl.lm_head.layout import HeadLayout
from entropy_rl.types import DATA_AXES, FSDP_AXIS, TENSOR_AXIS, Params, Policy

_AXES = (*DATA_AXES, TENSOR_AXIS)

# Suffix of a parameter's path -> mesh axes of its last axes; preceding axes, such as that of the
# layers, are not sharded.
_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embed_tokens/embedding|lm_head/kernel", (TENSOR_AXIS, FSDP_AXIS)),
    # Some are fused for decoding if the tensor axis has one device.
    # Quantized ones have other leaves in the place of a kernel.
    (r"(q|k|v|qkv|gate|up|gate_up)_proj/kernel(_int8|_nf4|_scale)?", (FSDP_AXIS, TENSOR_AXIS)),
    (r"(o|down)_proj/kernel(_int8|_nf4|_scale)?", (TENSOR_AXIS, FSDP_AXIS)),
    (r"(q|k|v|qkv|gate|up|gate_up)_proj/bias", (TENSOR_AXIS,)),
    (r"(norm|layernorm)/scale|(o|down)_proj/bias|value_head/kernel", ()),
    # Adapters: their ranks are too small to be sharded, and B is split as its kernel.
    (r"(q|k|v|qkv|gate|up|gate_up)_proj/lora_a", (FSDP_AXIS, None)),
    (r"(q|k|v|qkv|gate|up|gate_up)_proj/lora_b", (None, TENSOR_AXIS)),
    (r"(o|down)_proj/lora_a", (TENSOR_AXIS, None)),
    (r"(o|down)_proj/lora_b", (None, FSDP_AXIS)),
)
# Adafactor's factored second moments and Muon's coefficients: they are small.
_REPLICATED = re.compile(r"(^|/)(v_row|v_col|ns_coeffs|curriculum)(/|$)")
_KV_HEADS = re.compile(r"(^|/)[kv]_proj/")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """Build the mesh of a config.

    Args:
      config: The `mesh` section.
      devices: Its devices; None for all devices of all processes.

    Returns:
      The mesh; None for a single device of a single process.

    Raises:
      ValueError: If the sizes do not match the devices, or a tensor group would span processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    processes = len({device.process_index for device in devices})
    sizes = _mesh_sizes(config, len(devices))
    used = math.prod(sizes)
    if processes > 1 and used != len(devices):
        raise ValueError(
            f"mesh: must have all {len(devices)} devices of the {processes} processes, got "
            f"{_text(sizes)}, which are {used}"
        )
    if processes == used == 1:
        return None
    own = len(devices) // processes
    if processes > 1 and own % sizes[2]:
        raise ValueError(
            f"mesh.tensor: must be a divisor of {own}, the devices of a process, got {sizes[2]}"
        )
    make = partial(jax.make_mesh, sizes, _AXES, axis_types=(AxisType.Auto,) * 3)
    # On the first devices if there are more. JAX arranges them by physical topology if possible.
    try:
        mesh = make(devices=devices[:used])
    except NotImplementedError:  # an axis is not a product of physical axes
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
            f"mesh: the product of the sizes must {'divide' if -1 in sizes else 'be at most'} "
            f"the number of devices ({devices}), got {_text(sizes)}"
        )
    return sizes


def _text(sizes: Sequence[int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in zip(_AXES, sizes, strict=True))


def _rows_lie_in_order(mesh: Mesh) -> bool:
    """Whether tensor groups are within a process, and rows are in the order of processes."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return bool((owners == owners[..., :1]).all() and (np.diff(owners.reshape(-1)) >= 0).all())


def row_shards(mesh: Mesh | None) -> int:
    """Return the number of shards of rows on a mesh."""
    return HeadLayout(mesh).size(*DATA_AXES)


def row_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Return the sharding of arrays of rows; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(DATA_AXES))


def check_rows(mesh: Mesh | None, count: int, rows_each: int, field: str) -> None:
    """Check that the rows of an update are divisible by the number of row shards.

    Args:
      mesh: The mesh; None for one device.
      count: Prompts, or examples, of an update.
      rows_each: Rows of each of them.
      field: The config field of `count`, for errors.

    Raises:
      ValueError: If they are not.
    """
    if mesh is None:
        return
    shards = row_shards(mesh)
    unit = shards // math.gcd(shards, rows_each)
    if count % unit:
        raise ValueError(
            f"{field}: must be a multiple of {unit}, so that the rows of an "
            f"update are divisible by the {shards} row shards of the mesh, got {count}"
        )


def partition_spec(
    path: str, shape: Sequence[int], mesh: Mesh, kv_heads: int | None = None
) -> PartitionSpec:
    """Return the partition spec of a parameter, or of an array of an optimizer's state.

    Axes that are not divisible by the mesh axis are not sharded; neither are KV heads whose number
    is not divisible by the tensor axis.

    Args:
      path: Names joined by "/", such as `layers/self_attn/q_proj/kernel`, with any prefix.
      shape: Shape of the array.
      mesh: The mesh.
      kv_heads: K; None to ignore it.

    Raises:
      ValueError: If no rule matches the path.
    """
    if not shape or tuple(shape) == (1,) or _REPLICATED.search(path):
        return PartitionSpec()  # a count, or the place of a moment that is factored
    axes = next(
        (axes for pattern, axes in _RULES if re.search(rf"(^|/|_)({pattern})$", path)), None
    )
    if axes is None:
        raise ValueError(f"{path}: no partition rule matches this parameter")
    whole_heads = bool(kv_heads and kv_heads % mesh.shape[TENSOR_AXIS] and _KV_HEADS.search(path))
    before = [None] * (len(shape) - len(axes))
    split = [
        None
        if axis is None or size % mesh.shape[axis] or (axis == TENSOR_AXIS and whole_heads)
        else axis
        for axis, size in zip(axes, shape[len(before) :], strict=True)
    ]
    return PartitionSpec(*before, *split)


class Placement:
    """Shardings of a run's arrays; without a mesh, everything is on the default device.

    Attributes:
      mesh: Mesh of all devices; None for a single device.
      local_mesh: Mesh of this process's devices, on which it decodes.
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
        """Return the sharding of each leaf of parameters, of their moments, or of a state."""
        return self._shardings(tree, (FSDP_AXIS, TENSOR_AXIS))

    def of_path(self, path: str, shape: Sequence[int]) -> NamedSharding:
        """Return the sharding of a training parameter."""
        return NamedSharding(self.mesh, partition_spec(path, shape, self.mesh, self._kv_heads))

    def abstract(self, tree: Any) -> Any:
        """Return shapes, types and shardings of parameters or of a state."""
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
        """Constrain parameters or a state to `of_params`, inside a jitted function."""
        return (
            tree
            if self.mesh is None
            else jax.lax.with_sharding_constraint(tree, self.of_params(tree))
        )

    def put_params(self, tree: Any) -> Any:
        """Put parameters from the host, equal in all processes, where `of_params` says."""
        return jax.device_put(tree, None if self.mesh is None else self.of_params(tree))

    def put_rows(self, tree: Any) -> Any:
        """Make global arrays of the rows of all processes.

        Args:
          tree: Pytree of numpy arrays, the rows of this process.

        Returns:
          The tree with global arrays [B, ...], in the order of the processes.
        """
        if self.mesh is None:
            return tree
        rows = self.of_rows()
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(rows, np.asarray(x)), tree
        )

    def put_whole(self, tree: Any) -> Any:
        """Make arrays that every device has whole.

        Args:
          tree: Pytree of numpy arrays, the same in every process.
        """
        if self.mesh is None:
            return jax.device_put(tree)
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def of_rows(self) -> NamedSharding:
        """Return the sharding of the arrays of `put_rows`; needs a mesh."""
        return row_sharding(self.mesh)

    def put_prompts(self, tree: Any) -> Any:
        """Put prompts on this process's devices: sharded, or replicated if not divisible."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, self.of_prompts(len(jax.tree.leaves(tree)[0])))

    def of_prompts(self, prompts: int) -> NamedSharding:
        """Return the sharding of that many prompts by `put_prompts`; needs a mesh."""
        spec = (
            PartitionSpec() if prompts % row_shards(self.local_mesh) else PartitionSpec(DATA_AXES)
        )
        return NamedSharding(self.local_mesh, spec)

    @property
    def local_shards(self) -> int:
        """Number of shards of this process's prompts, if divisible."""
        return row_shards(self.local_mesh)

    def constrain_rows(self, tree: Any) -> Any:
        """Shard rows, and heads of caches, over this process's devices, inside a jitted function.

        Without it, the compiler would replicate the caches.

        Args:
          tree: Leaves [rows, ...], caches [rows, K, ..., ...], or scalars.
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
        """Build the weight sync: `(params) -> decoding parameters` on this process's devices.

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
        """Build the jitted part of `make_to_decode`: decoding parameters sharded over tensor."""
        if self.mesh is None:
            return jax.jit(policy.to_decode)

        @jax.jit
        def cast(params: Params) -> Params:
            decode = policy.to_decode(params)
            return jax.lax.with_sharding_constraint(decode, self.of_decode(decode))

        return cast

    def of_decode(self, tree: Any) -> Any:
        """Return the sharding of each leaf of decoding parameters, on all devices."""
        return self._shardings(tree, (TENSOR_AXIS,))


def commit(tree: Any) -> Any:
    """Commit arrays to their devices, without a copy.

    Compiled programs depend on whether their arguments are committed. Those of a checkpoint are,
    so a run begins with such a state as well, and finds its programs in the cache when it resumes.
    """
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)


def move(tree: Any, memory: Literal["device", "pinned_host"]) -> Any:
    """Move arrays to another memory kind, keeping their shardings."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind(memory)), tree)


def _local_mesh(mesh: Mesh) -> Mesh:
    """Return the mesh of this process's tensor groups, which replicate the parameters."""
    groups = mesh.devices.reshape(-1, mesh.shape[TENSOR_AXIS])
    own = [group for group in groups if group[0].process_index == jax.process_index()]
    return Mesh(np.array(own)[:, None], _AXES, axis_types=mesh.axis_types)
