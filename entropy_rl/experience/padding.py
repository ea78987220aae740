"""Right-padding of rows of tokens to one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_LENGTH_MULTIPLE = 8  # few lengths, so that few programs are compiled


def padded_length(length: int) -> int:
    """Round a number of tokens up to a multiple of 8."""
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def pad_rows(rows: Sequence[Sequence[Any]], length: int, fill: Any, dtype: Any) -> np.ndarray:
    """Return dtype[len(rows), length]: the rows, each followed by `fill`."""
    padded = np.full((len(rows), length), fill, dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
