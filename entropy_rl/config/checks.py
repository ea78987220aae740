"""The checks of the dataclasses of a configuration."""

from __future__ import annotations

from typing import Any


def require(condition: bool, path: str, value: Any, allowed: str) -> None:
    """Raises the `ValueError` of a field that is out of range."""
    if not condition:
        raise ValueError(f"{path}: {value!r} is not allowed; allowed: {allowed}")


def require_at_least(minimum: int, section: str, config: Any, *names: str) -> None:
    """Raises a `ValueError` if one of the named fields is below the minimum."""
    for name in names:
        value = getattr(config, name)
        require(value >= minimum, f"{section}{name}", value, f"whole numbers >= {minimum}")
