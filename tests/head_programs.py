"""Compiled programs of a head, read as text: which collectives they have, and in which loop."""

import re

COLLECTIVES = r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def computations(text: str) -> dict[str, str]:
    """The functions of an HLO text by name."""
    return {
        name: body
        for name, body in re.findall(
            r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.S | re.M
        )
    }


def inside_loops(text: str) -> set[str]:
    """Names of the functions that a while loop runs, at any depth."""
    functions = computations(text)
    found, todo = set(), set(re.findall(r"body=%?([\w.\-]+)", text))
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= {
            other for other in re.findall(r"%([\w.\-]+)", functions[name]) if other in functions
        } - found
    return found


def collectives(text: str, *, in_loops: bool) -> list[tuple[str, tuple[str, ...]]]:
    """(kind, shapes of its results) of each collective, inside of the loops or outside."""
    loops = inside_loops(text)
    found = []
    for name, body in computations(text).items():
        if (name in loops) != in_loops:
            continue
        for result, kind in re.findall(
            rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({COLLECTIVES})(?:-start)?\(", body, re.M
        ):
            found.append((kind, tuple(re.findall(r"[a-z]+\d*\[[\d,]*\]", result))))
    return found
