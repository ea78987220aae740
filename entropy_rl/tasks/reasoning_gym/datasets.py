"""What is known of reasoning-gym's datasets: those whose judge cannot be used, or runs code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# As of reasoning-gym 0.1.25.
UNUSABLE: Mapping[str, str] = {
    "boxnet": "a problem has no answer, and its judge raises errors",
    "composite": "it is a mixture: name its datasets instead",
    "codeio": "its problems differ between processes",
    "game_of_life_halting": "its judge accepts any text",
    "puzzle24": "its judge ignores the numbers of the problem",
    "rush_hour": "a problem has no answer",
}
RUN_CODE = frozenset(
    ("binary_matrix", "countdown", "intermediate_integration", "n_queens")
    + ("polynomial_multiplication", "simple_integration", "spiral_matrix", "string_insertion")
)


def spec_of(name: str, settings: Mapping[str, Any], seed: int, size: int) -> str:
    """Identify a dataset, for the worker processes that build it again.

    The i-th problem is a function of seed + i, so another seed is the same data, shifted: splits
    are different indices of one seed.
    """
    fields = {"name": name, "settings": dict(settings), "seed": seed, "size": size}
    return json.dumps(fields, sort_keys=True)
