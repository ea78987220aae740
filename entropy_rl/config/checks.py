"""Range checks of config fields, with one form for every error: `PATH: must be Y, got X`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import numbers
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

# The range of float32; smaller numbers are flushed to zero by accelerators.
_FLOAT32_MIN, FLOAT32_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127
_INT32_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1
_SEED = re.compile(r"(^|[.-])seeds?(\[\d+\])?$")
# `jax.random.key` takes the lower 32 bits of a seed: a larger one would repeat the samples of
# another.
MOST_SEED = 2**32 - 1
# More layers would take minutes to trace before anything else is noticed.
MOST_LAYERS = 10_000
# A day. The timers of workers take more, but not all that a float holds.
MOST_DEADLINE_S = 86_400


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
        raise ValueError(f"{path}: must be {must_be}, got {shown(value)}")


def is_count(value: Any, minimum: int) -> bool:
    """Return whether an argument is an integer of at least `minimum`."""
    return isinstance(value, numbers.Integral) and value >= minimum


@contextlib.contextmanager
def at_place(place: str, caught: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Begin the message of an error with the place of what is wrong, such as `runs[1]`.

    Args:
      place: The place.
      caught: The errors, which become a ValueError.
    """
    try:
        yield
    except caught as error:
        raise ValueError(f"{place}: {error}") from error


def require_at_least(minimum: int, section: str, config: Any, *names: str) -> None:
    """Require that fields of a section are at least `minimum`, or None where their type has it."""
    hints = typing.get_type_hints(type(config))
    for name in names:
        value, is_optional = getattr(config, name), type(None) in typing.get_args(hints[name])
        must_be = f"null or >= {minimum}" if is_optional else f">= {minimum}"
        is_absent = is_optional and value is None
        require(is_absent or value >= minimum, f"{section}{name}", value, must_be)


# --------------------------------------------------------------------------------------------------
# Numbers
# --------------------------------------------------------------------------------------------------


def shown(value: Any, limit: int = 200) -> str:
    """Return the repr of a value in one line, shortened in the middle where it is long."""
    try:
        if isinstance(value, str | bytes) and len(value) > limit:
            return f"{value[: limit // 2]!r}... ({len(value)} characters)"
        if is_int(value) and abs(value) >= 10**limit:
            return f"a number of about {int(value.bit_length() * math.log10(2))} digits"
        text = repr(value)
    except (ValueError, RecursionError):
        text = reprlib.repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 4 :]}"


def is_int(value: Any) -> bool:
    """True for an int, but not for a bool, which is a subclass of int."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """True for an int or a float, but not for a bool; see `is_int`."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def fits_float32(value: float) -> bool:
    """True for a finite number that float32 neither overflows nor flushes to zero."""
    return value == 0 or _FLOAT32_MIN <= abs(value) <= FLOAT32_MAX


def check_number(value: Any, path: str, own: bool = True) -> None:
    """Refuse a number that no field can hold; anything else passes.

    Floats must be finite and in the range of float32, whole numbers in that of int32; a field
    called `seed` holds what a random key can.

    Args:
      value: The value.
      path: Its dotted path.
      own: Whether the field is of this library; False for an argument of a user's own task or
        method, whose whole numbers may be those of int64.

    Raises:
      ValueError: If it is out of range.
    """
    if not is_number(value):
        return
    if isinstance(value, float):
        if not fits_float32(value):
            raise ValueError(f"{path}: must be a finite number of float32's range, got {value!r}")
    elif not own:
        if abs(value) > _INT64_MAX:
            raise ValueError(f"{path}: must be an integer below 2^63, got {shown(value)}")
    elif _SEED.search(path):
        if not 0 <= value <= MOST_SEED:
            raise ValueError(f"{path}: must be an integer from 0 to 2^32 - 1, got {shown(value)}")
    elif abs(value) > _INT32_MAX:
        raise ValueError(f"{path}: must be an integer below 2^31, got {shown(value)}")


@functools.cache
def _number_fields(section: type) -> list[str]:
    """The fields of a dataclass that hold a number, or None."""
    kinds = {int, float, int | None, float | None}
    return [name for name, hint in typing.get_type_hints(section).items() if hint in kinds]


def check_numbers(value: Any, path: str, own: bool = True) -> None:
    """Apply `check_number` to all numbers of a nest of mappings, lists and dataclasses.

    A field of a dataclass that is annotated as a number must hold one, unless it is None.

    What is inside a mapping or a list may be of a user: see `own` of `check_number`.
    """
    is_section = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if is_section:
        above = f"{path}." if path else ""
        for name in _number_fields(type(value)):
            found = getattr(value, name)
            is_number = found is None or isinstance(found, numbers.Number)
            require(is_number, f"{above}{name}", found, "a number")
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_numbers(item, f"{path}.{name}" if path else f"{name}", is_section)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_numbers(item, f"{path}[{i}]", False)
    else:
        check_number(value, path, own)
