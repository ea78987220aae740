"""Range checks of config fields, with one form for every error: `PATH: must be Y, got X`."""

from __future__ import annotations

from typing import Any


def require(condition: bool, path: str, value: Any, must_be: str) -> None:
    """Raise the error of a config field that is out of range.

    Args:
      condition: Whether the value is in range.
      path: Dotted path of the field.
      value: The value.
      must_be: The allowed values, as the end of "must be ...".

    Raises:
      ValueError: If the condition is false.
    """
    if not condition:
        raise ValueError(f"{path}: must be {must_be}, got {value!r}")


def require_at_least(minimum: int, section: str, config: Any, *names: str) -> None:
    """Require that fields of a section are at least `minimum`; see `require`."""
    for name in names:
        value = getattr(config, name)
        require(value >= minimum, f"{section}{name}", value, f">= {minimum}")
