"""Names that people write in configs: nearest matches and imports, with errors of one line."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


def unknown(path: str, name: object, allowed: Iterable[str]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    allowed = list(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{path}: {name!r} is unknown; {hint}allowed: {', '.join(allowed) or 'none'}"


def import_object(path: str, reference: str) -> Any:
    """Imports `module:attribute`.

    Args:
      path: Dotted path of the config field, for the error.
      reference: The reference.

    Raises:
      ValueError: If the module or the attribute does not exist.
    """
    module, _, attribute = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: cannot import {reference!r}: {error}") from error
