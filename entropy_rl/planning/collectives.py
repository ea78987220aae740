"""Collectives of a compiled program, parsed from its HLO text: kind, count and bytes.

A collective in a loop counts once per iteration if the trip count is known: XLA annotates it, or
the loop condition compares a counter with a constant. The trip counts of other loops, such as those
over micro-batches, depend on the data: their collectives are counted per iteration, `depth` loops
deep. Of a conditional, the branch with the most bytes counts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s})])([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:to_apply|calls|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TWO_BRANCHES = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[(.*?)\] \{(.*?)\})")


class Collective(NamedTuple):
    """One kind of collective at one depth.

    Attributes:
      kind: One of KINDS.
      depth: Number of enclosing loops with unknown trip counts; 0 for counts of the whole program.
    """

    kind: str
    depth: int


class Amount(NamedTuple):
    """Count, and bytes per device: those of the larger of input and output."""

    count: int
    bytes: int


def find_collectives(text: str) -> dict[Collective, Amount]:
    """Count the collectives of a program.

    Args:
      text: HLO text, from `compiled.as_text()`.
    """
    computations, entry = _computations(text)
    known: dict[str, Counter] = {}

    def of(name: str) -> Counter:
        """Count a computation and all it calls, by (collective, "count" or "bytes")."""
        if name not in known:
            known[name] = found = Counter()
            for operation, shapes, line in computations.get(name, ()):
                found.update(_own(operation, shapes, line))
                branches = _branches(line)
                if branches:
                    found.update(max(map(of, branches), key=_all_bytes))
                for called in _CALLED.findall(line):
                    inner = of(called)
                    found.update(
                        _repeated(inner, _trips(line, computations)) if " while(" in line else inner
                    )
        return known[name]

    total = of(entry)
    return {c: Amount(total[c, "count"], total[c, "bytes"]) for c in sorted({c for c, _ in total})}


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """Return computation -> (operation, result shapes, line) per instruction, and the entry."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    entry = name = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name = header[1]
            found[name] = []
            entry = name if line.startswith("ENTRY ") else entry
        elif name and (instruction := _INSTRUCTION.match(line)):
            operation = _OPERATION.search(instruction[2])
            if operation:
                found[name].append((operation[1], instruction[2][: operation.start()], line))
    return found, entry


def _own(operation: str, shapes: str, line: str) -> Counter:
    kind = operation.removesuffix("-start")
    if kind not in KINDS:
        return Counter()
    sizes = [array_bytes(*shape) for shape in _SHAPE.findall(shapes)]
    # The result of a start holds its input as well, and of a permutation two flags.
    size = sum(sizes)
    if operation.endswith("-start") and kind != "all-reduce":
        size = max(sizes) if kind == "collective-permute" else size - sum(sizes[: len(sizes) // 2])
    if kind == "reduce-scatter":
        size *= _group_size(line)
    here = Collective(kind, 0)
    return Counter({(here, "count"): 1, (here, "bytes"): size})


def array_bytes(dtype: str, dimensions: str) -> int:
    """Return the bytes of an array, such as `bf16` `4,128`."""
    bits = (
        8
        if dtype == "pred"
        else int(re.sub(r"\D*(\d+).*", r"\1", dtype) or 0)
        if dtype != "token"
        else 0
    )
    return -(-bits * math.prod(int(n) for n in dimensions.split(",") if n) // 8)


def _group_size(line: str) -> int:
    groups = _GROUPS.search(line)
    if groups is None:
        return 1
    if groups[1] is not None:
        return len(groups[1].split(","))
    if groups[2] is not None:
        return int(groups[2])
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[3]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", groups[4]))


def _branches(line: str) -> list[str]:
    listed = _BRANCHES.search(line)
    names = listed[1].split(",") if listed else _TWO_BRANCHES.findall(line)
    return [name.strip().lstrip("%") for name in names]


def _trips(line: str, computations: dict[str, list[tuple[str, str, str]]]) -> int | None:
    """Return the trip count of a loop; None if it depends on the data."""
    noted = _KNOWN_TRIPS.search(line)
    if noted:
        return int(noted[1])
    condition = computations.get(_CONDITION.search(line)[1], [])
    lines = [line for _, _, line in condition]
    for line in list(lines):  # the comparison may be in a fusion of its own
        for called in _CALLED.findall(line):
            lines += [inner for _, _, inner in computations.get(called, ())]
    constants = [int(n) for line in lines for n in _CONSTANT.findall(line)]
    comparisons = [line for line in lines if " compare(" in line]
    if len(comparisons) == 1 and "direction=LT" in comparisons[0] and len(constants) == 1:
        return constants[0]
    return None


def _repeated(inner: Counter, trips: int | None) -> Counter:
    if trips is not None:
        return Counter({key: number * trips for key, number in inner.items()})
    return Counter({(c._replace(depth=c.depth + 1), what): n for (c, what), n in inner.items()})


def _all_bytes(amounts: Counter) -> int:
    return sum(number for (_, what), number in amounts.items() if what == "bytes")
