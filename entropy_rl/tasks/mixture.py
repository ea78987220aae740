"""Mixtures of several sources of problems: weights, counts and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from entropy_rl.config.checks import is_number, require

ID_STRIDE = 1_000_000  # between the ids of two parts


class Part(NamedTuple):
    """One source of a mixture, and its problems in each split."""

    name: str
    settings: dict[str, Any]
    counts: dict[str, int]

    def indices(self, split: str) -> range:
        """Indices of a split: the test problems come first, so that `train` may grow."""
        first = 0 if split == "test" else self.counts["test"]
        return range(first, first + self.counts[split])


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


def make_parts(
    weights: Mapping[str, float],
    settings: Mapping[str, dict[str, Any]],
    sizes: Mapping[str, int],
    what: str,
) -> list[Part]:
    """Share the problems of each split out by weights; the largest remainders are rounded up.

    Args:
      weights: Of the sources.
      settings: Of the sources.
      sizes: Problems of each split.
      what: A source is, for errors.

    Raises:
      ValueError: A split is too small for a problem of every source, or too large for the ids.
    """
    counts = {
        split: _share_out(weights, total, f"task.args.{split}", what)
        for split, total in sizes.items()
    }
    return [
        Part(name, settings[name], {split: counts[split][name] for split in sizes})
        for name in weights
    ]


def _share_out(weights: Mapping[str, float], total: int, path: str, what: str) -> dict[str, int]:
    allowed = f"from 1 to {ID_STRIDE // 2 - 1}"
    require(1 <= total < ID_STRIDE // 2, path, total, allowed)
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
