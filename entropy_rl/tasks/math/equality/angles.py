"""Angles in degrees and in radians: 90 degrees are π/2."""

from __future__ import annotations

import re

from entropy_rl.tasks.math.equality.units import Quantity

_DEGREES = (("degree", 1),)
_PI = re.compile(r"\\pi(?![A-Za-z])")


def read_angles(right: Quantity, given: Quantity) -> tuple[str, str] | None:
    """Two angles in radians, if one is in degrees and the other a multiple of π; else None."""
    radians = ((), (("rad", 1),), (("radian", 1),))
    if right.unit == _DEGREES and given.unit in radians and _PI.search(given.value):
        return _in_radians(right.value), given.value
    if given.unit == _DEGREES and right.unit in radians and _PI.search(right.value):
        return right.value, _in_radians(given.value)
    return None


def _in_radians(degrees: str) -> str:
    return rf"({degrees})\cdot\frac{{\pi}}{{180}}"
