"""Mixtures of several sources of problems: weights, counts and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.config.checks import is_number, require


def split_weight(path: str, given: Any) -> tuple[float, dict[str, Any]]:
    """Split the settings of a source into its weight (1 without one) and the rest.

    Raises:
      ValueError: They are not a mapping, or the weight is not a number > 0.
    """
    require(isinstance(given, Mapping | None), path, given, "a mapping of settings")
    rest = dict(given or {})
    weight = rest.pop("weight", 1)
    require(is_number(weight) and 0 < weight < 1e6, f"{path}.weight", weight, "a number > 0")
    return weight, rest


def share_out(weights: Mapping[str, float], total: int, path: str, what: str) -> dict[str, int]:
    """Share a number of problems out by weights; the largest remainders are rounded up.

    Args:
      weights: Of the sources.
      total: Problems.
      path: Dotted path of the number.
      what: A source is, for errors.

    Raises:
      ValueError: A source would have no problem.
    """
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    order = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    least = min(counts, key=counts.get)
    must_be = f"large enough for a problem of every {what} ({least} has none)"
    require(counts[least] > 0, path, total, must_be)
    return counts


def interleave(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Order the problems of sources so that these alternate by their sizes.

    Returns:
      (number of the source, index of its problem) of each problem.
    """
    places = [
        ((i + 0.5) / size, number, i) for number, size in enumerate(sizes) for i in range(size)
    ]
    return [(number, i) for _, number, i in sorted(places)]
