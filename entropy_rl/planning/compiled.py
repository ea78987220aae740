"""Ahead-of-time compilation of a program: memory per device, largest arrays, collectives."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any

import jax

from entropy_rl.planning.collectives import Amount, Collective, array_bytes, find_collectives

_USED = re.compile(r"Used ([\d.]+[KMGT]?) of")
_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+[KMGT]?)\)")
_ALLOCATION = re.compile(
    r"Size: ([\d.]+[KMGT]?).*?(?:Operator: op_name=\"([^\"]*)\".*?)?Shape: (\S+)", re.S
)
_RESULT = re.compile(
    r"^\s*(?:ROOT )?%?[\w.\-]+ = (\w+)\[([\d,]+)\]\S* (?!parameter)([a-z\-]+)\(.*$", re.M
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NAMED = 5  # buffers


@dataclasses.dataclass(frozen=True)
class Program:
    """Memory analysis of a compiled program, in bytes per device.

    Attributes:
      name: Display name.
      seconds: Compile time.
      arguments: Bytes of the inputs.
      outputs: Bytes of the outputs.
      aliased: Bytes of outputs that reuse input buffers.
      temporaries: Bytes of temporaries and code.
      largest: (bytes, name) of the largest arguments and temporaries.
      collectives: Collectives in the HLO.
      refused: Required bytes if the compiler could not fit the program into memory; the other
        fields are then 0.
    """

    name: str
    seconds: float
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    largest: tuple[tuple[int, str], ...] = ()
    collectives: dict[Collective, Amount] = dataclasses.field(default_factory=dict)
    refused: int | None = None

    @property
    def peak(self) -> int:
        """Peak bytes."""
        if self.refused is not None:
            return self.refused
        return self.arguments + self.outputs - self.aliased + self.temporaries


def compile_program(name: str, lowered: Any, arguments: Any) -> tuple[Program, Any]:
    """Compile a program, which may be too large.

    Args:
      name: Display name.
      lowered: The program, from `jax.jit(...).lower`.
      arguments: The shapes it was lowered for, by name.

    Returns:
      (memory analysis, output shardings or None if the program is too large).
    """
    begin = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refused(name, time.monotonic() - begin, str(error), arguments), None
    memory, text = compiled.memory_analysis(), compiled.as_text()
    program = Program(
        name,
        time.monotonic() - begin,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        largest=_largest([*_named(arguments), *_results(text, memory.temp_size_in_bytes)]),
        collectives=find_collectives(text),
    )
    return program, compiled.output_shardings


def shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Return the bytes of an array on one device."""
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    size = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) else x.dtype.itemsize
    return math.prod(shape) * size


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all arrays of a pytree on one device."""
    return sum(map(shard_bytes, jax.tree.leaves(tree)))


def _named(arguments: Any) -> list[tuple[int, str]]:
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    text = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    return [
        (shard_bytes(x), f"{text(path)} {x.dtype.name}{list(_shard_shape(x))}")
        for path, x in leaves
        if hasattr(x, "sharding")
    ]


def _shard_shape(x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)


def _results(text: str, most: int) -> list[tuple[int, str]]:
    """Arrays that instructions make, by what the model calls them; those larger than all
    temporaries are not kept, but parts of a fusion."""
    found = {}
    for match in _RESULT.finditer(text):
        dtype, dimensions, operation = match.groups()
        if operation in ("get-tuple-element", "bitcast", "tuple"):
            continue
        name = _OP_NAME.search(match[0])
        size = array_bytes(dtype, dimensions)
        if name and size <= most:
            found[dtype, dimensions] = size, f"{_short(name[1])} {dtype}[{dimensions}]"
    return list(found.values())


def _short(op_name: str) -> str:
    """The last parts of an op_name, such as mlp/up_proj/dot_general."""
    return "/".join(op_name.split("/")[-3:])


def _largest(buffers: list[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
    return tuple(sorted(buffers, reverse=True)[:_NAMED])


def _refused(name: str, seconds: float, message: str, arguments: Any) -> Program:
    used = [_bytes(size) for size in _USED.findall(message)]
    used += [_bytes(size) + tree_bytes(arguments) for size in _TEMPORARIES.findall(message)]
    listed = [
        (_bytes(size), f"{_short(where)} {shape.partition('{')[0]}".strip())
        for size, where, shape in _ALLOCATION.findall(message)
    ]
    return Program(
        name, seconds, largest=_largest(listed or _named(arguments)), refused=max(used, default=0)
    )


def _bytes(text: str) -> int:
    unit = text[-1] if text[-1] in _UNITS else ""
    return int(float(text.removesuffix(unit)) * _UNITS[unit])
