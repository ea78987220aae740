"""LoRA: low-rank adapters of a frozen decoder (arXiv 2106.09685).

    y = x W + s (x A) B          A: [in, r], B: [r, out], s = alpha / r, or alpha / sqrt(r)

An adapter is a tree like that of the parameters, with the leaves `lora_a` and `lora_b` beside the
places of the kernels it adapts. Joined with its base, with s multiplied into B, it is a tree of
parameters like any other: every function of a `Policy` takes it, and computes x W + (x A) B.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from entropy_rl.config.lora import LORA_TARGETS, LoraConfig
from entropy_rl.models.decoder import DecoderConfig
from entropy_rl.models.linear import LORA_A, LORA_B
from entropy_rl.models.quantized import dequantize
from entropy_rl.types import Params, Policy

# Folded into the key of a run, whose samples have the numbers of steps.
_STREAM = 2**31 - 2


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """What an adapter is, without its values.

    Attributes:
      rank: r.
      alpha: Numerator of the scale.
      rslora: Whether the scale is alpha / sqrt(r) (arXiv 2312.03732) rather than alpha / r.
      targets: The matrices of a layer that it adapts, in the order of `LORA_TARGETS`.
    """

    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def lora_spec(config: LoraConfig) -> LoraSpec:
    """Return the spec of a new adapter."""
    names = LORA_TARGETS if config.targets is None else config.targets
    targets = tuple(name for name in LORA_TARGETS if name in names)
    return LoraSpec(config.rank, config.alpha, config.rslora, targets)


def check_rank(spec: LoraSpec, config: DecoderConfig) -> None:
    """Check that an adapter has fewer parameters than the matrices it adapts.

    Raises:
      ValueError: If a matrix has no more rows or columns than the rank.
    """
    for name in spec.targets:
        size = min(matrix_shape(name, config))
        if spec.rank >= size:
            raise ValueError(
                f"model.lora.rank: must be < {size}, the smaller side of {name}, got {spec.rank}"
            )


def matrix_shape(target: str, config: DecoderConfig) -> tuple[int, int]:
    """Return (in, out) of a matrix of a layer."""
    width, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (width, heads),
        "k_proj": (width, kv_heads),
        "v_proj": (width, kv_heads),
        "o_proj": (heads, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }[target]


def module_of(target: str) -> str:
    """Return the submodule of a layer that has a matrix."""
    return "self_attn" if target in LORA_TARGETS[:4] else "mlp"


def adapter_shapes(spec: LoraSpec, config: DecoderConfig) -> Params:
    """Return the shapes of an adapter, f32[L, in, r] and f32[L, r, out] for each target."""
    layers: dict[str, Any] = {}
    for name in spec.targets:
        rows, columns = matrix_shape(name, config)
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        layers.setdefault(module_of(name), {})[name] = {
            LORA_A: shape((config.num_layers, rows, spec.rank)),
            LORA_B: shape((config.num_layers, spec.rank, columns)),
        }
    return {"layers": layers}


def count_parameters(spec: LoraSpec, config: DecoderConfig) -> int:
    """Return the number of parameters of an adapter."""
    sides = sum(sum(matrix_shape(name, config)) for name in spec.targets)
    return config.num_layers * spec.rank * sides


def init_adapter(key: jax.Array, spec: LoraSpec, config: DecoderConfig) -> Params:
    """Draw A from U(-1/sqrt(in), 1/sqrt(in)), as PEFT does; B is 0.

    The key of a matrix is that of its name and layer: it does not depend on the other targets.

    Returns:
      f32 arrays on the host, so that they fit any mesh.
    """
    key = jax.random.fold_in(key, _STREAM)
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), adapter_shapes(spec, config))
    for name in spec.targets:
        a = params["layers"][module_of(name)][name][LORA_A]
        bound = a.shape[1] ** -0.5  # kaiming_uniform with a = sqrt(5)
        of_matrix = jax.random.fold_in(key, LORA_TARGETS.index(name))
        for layer in range(config.num_layers):
            of_layer = jax.random.fold_in(of_matrix, layer)
            a[layer] = jax.random.uniform(of_layer, a.shape[1:], minval=-bound, maxval=bound)
    return params


@jax.jit
def stack_adapters(adapters: Sequence[Params]) -> Params:
    """Stack K adapters of one shape: f32[L, K, in, r] and f32[L, K, r, out] for each target.

    Joined with their base and passed to `Policy.to_decode`, they decode K equal parts of the rows,
    each with its own adapter.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *adapters)


# --------------------------------------------------------------------------------------------------
# Base and adapter
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Base:
    """The frozen parameters of a LoRA run.

    Attributes:
      params: For the policy, of any float type.
      spec: The adapters that are trained on them.
      path: Where they come from, as a `model.path`.
    """

    params: Params
    spec: LoraSpec
    path: str

    def join(self, adapter: Params) -> Params:
        """Return the parameters of the policy with an adapter; those of the base are shared."""
        return _merged_trees(self.params, _scaled(adapter, self.spec.scale))

    def bind(self, policy: Policy, params: Params | None = None) -> Policy:
        """Return the policy as functions of an adapter, differentiable in it alone.

        Args:
          policy: The policy.
          params: In place of those of the base, such as an argument of the program.
        """
        base = self if params is None else dataclasses.replace(self, params=params)

        def on(function: Callable) -> Callable:
            return lambda adapter, *args: function(base.join(adapter), *args)

        return policy._replace(
            apply=on(policy.apply),
            apply_packed=on(policy.apply_packed),
            prefix=on(policy.prefix),
            head=on(policy.head),
            to_decode=on(policy.to_decode),
        )


@functools.partial(jax.jit, static_argnums=1)
def _scaled(adapter: Params, scale: float) -> Params:
    """Multiply s into B."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x * scale if path[-1].key == LORA_B else x, adapter
    )


def _merged_trees(first: Params, second: Params) -> Params:
    """Unite two nests of dicts without common leaves."""
    both = traverse_util.flatten_dict(first) | traverse_util.flatten_dict(second)
    return traverse_util.unflatten_dict(both)


def on_base(
    make: Callable[[Policy], Callable],
    policy: Policy,
    base: Base | None,
    donate: tuple[int, ...] = (),
) -> Callable:
    """Build a function of the parameters that are trained.

    Args:
      make: (policy) -> jitted function, which donates arguments of its own accord.
      policy: The policy.
      base: The frozen parameters, if an adapter is trained; its functions take the adapter.
      donate: Numbers of the arguments that are donated with a base.
    """
    return make(policy) if base is None else OnBase(make, policy, base, donate)


class OnFrozen:
    """A jitted function that reads frozen parameters.

    They are an argument of the program: they would be constants of it if they were closed over.
    """

    def __init__(
        self, make: Callable[[Params], Callable], frozen: Params, donate: tuple[int, ...] = ()
    ):
        """
        Args:
          make: (frozen parameters) -> function.
          frozen: The frozen parameters.
          donate: Numbers of the function's arguments that are donated.
        """

        def call(frozen: Params, *args: Any) -> Any:
            return make(frozen)(*args)

        self._frozen = frozen
        self._call = jax.jit(call, donate_argnums=tuple(1 + number for number in donate))

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self._call(self._frozen, *args)

    def lower(self, *args: Any) -> Any:
        """Lower it, as `jax.jit(...).lower`."""
        return self._call.lower(self._frozen, *args)


class OnBase(OnFrozen):
    """A jitted function of an adapter, or of a state with one, on a frozen base."""

    def __init__(
        self,
        make: Callable[[Policy], Callable],
        policy: Policy,
        base: Base,
        donate: tuple[int, ...] = (),
    ):
        """
        Args:
          make: (policy as functions of an adapter) -> function.
          policy: The policy.
          base: The base.
          donate: Numbers of the function's arguments that are donated.
        """
        super().__init__(lambda params: make(base.bind(policy, params)), base.params, donate)


def merge(params: Params) -> Params:
    """Merge the adapter of joined parameters into their kernels: W + A (s B), in float32.

    The other parameters are converted to float32, quantized kernels too; without an adapter, all
    are. To be jitted.
    """
    flat = traverse_util.flatten_dict(dequantize(params))
    flat = {path: x.astype(jnp.float32) for path, x in flat.items()}
    for path in [path for path in flat if path[-1] == LORA_A]:
        a, b = flat.pop(path), flat.pop((*path[:-1], LORA_B))
        delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        flat[(*path[:-1], "kernel")] += delta
    return traverse_util.unflatten_dict(flat)
