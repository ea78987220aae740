"""Check a line of samples.jsonl, which a crash, a merge or an editor may have damaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from entropy_rl.config.checks import shown
from entropy_rl.tasks.judging import GRADED
from entropy_rl.tasks.task import Verdict

_INT32_MAX = 2**31 - 1
_VERDICTS = frozenset(verdict.value for verdict in Verdict)


def check_sample(row: Any) -> None:
    """Check the fields of a sample that others read. It is fast: the loops over tokens are in C.

    Raises:
      ValueError: In one line, with the field.
    """
    if not isinstance(row, dict):
        raise ValueError(f"must be a sample, a JSON object, got {shown(row, 60)}")
    for name, (is_right, must_be) in _FIELDS.items():
        if name in row:
            if not is_right(row[name]):
                value = shown(row[name], 60)
                raise ValueError(f"must be a sample ({name}: must be {must_be}, got {value})")
        elif name not in _OPTIONAL:
            raise ValueError(f"must be a sample, got none of field {name!r}")
    tokens = len(row["tokens"])
    for name in ("entropy", "log_probs"):
        if name in row and len(row[name]) != tokens:
            raise ValueError(
                f"must be a sample ({name}: must have a number for each of the {tokens} tokens, "
                f"got {len(row[name])})"
            )


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_text_or_none(value: Any) -> bool:
    return value is None or type(value) is str


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _INT32_MAX


def _are_ids(value: Any) -> bool:
    if type(value) is not list:
        return False
    return not value or (
        set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= _INT32_MAX
    )


def _are_numbers(value: Any) -> bool:
    if type(value) is not list or not set(map(type, value)) <= {float, int}:
        return False
    try:
        return math.isfinite(sum(value))  # which it is not if a number is not
    except OverflowError:  # of an integer
        return False


def _is_number(value: Any) -> bool:
    return _are_numbers([value])


def _is_named(value: Any) -> bool:
    return type(value) is dict and all(map(_is_number, value.values()))


_Check = tuple[Callable[[Any], bool], str]
_TEXT: _Check = (_is_text, "a string")
_INDEX: _Check = (_is_index, f"an integer from 0 to {_INT32_MAX}")
_NUMBERS: _Check = (_are_numbers, "a list of finite numbers")
_FIELDS: Mapping[str, _Check] = MappingProxyType(
    {
        "problem": (lambda value: type(value) is int, "an integer"),
        "sample": _INDEX,
        "prompt": _TEXT,
        "right_answer": _TEXT,
        "answer": (_is_text_or_none, "a string or null"),
        "verdict": (
            lambda value: type(value) is str and value in _VERDICTS,
            f"one of {', '.join(sorted(_VERDICTS))}",
        ),
        "length": _INDEX,
        "tokens": (_are_ids, f"a list of token ids from 0 to {_INT32_MAX}"),
        "entropy": _NUMBERS,
        "completion": _TEXT,
        "finish_reason": _TEXT,
        "source": _TEXT,
        "step": _INDEX,
        "log_probs": _NUMBERS,
        GRADED: (_is_number, "a finite number"),
        "parts": (_is_named, "a mapping from names to finite numbers"),
    }
)
_OPTIONAL = frozenset(
    ("completion", "finish_reason", "source", "step", "log_probs", GRADED, "parts")
)
