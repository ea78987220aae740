"""`as_judgement`: what a task or a check returns becomes a `Judgement`."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence, Set
from typing import Any

from entropy_rl.config.checks import FLOAT32_MAX, shown
from entropy_rl.config.values import plain_scalar
from entropy_rl.tasks.task import JudgeError, Judgement, Problem, Verdict

CORRECT_AT = 1.0  # the default of a task's attribute `correct_at`
GRADED = "graded"  # the name of the grade beside those of the parts


def as_judgement(value: Any, correct_at: float = CORRECT_AT) -> Judgement:
    """Convert what was returned for a completion to a `Judgement`.

    Args:
      value: A `Judgement`; a `Verdict`; a bool, True for correct; a grade in [0, 1]; or None for
        not judged.
      correct_at: The grade from which on a completion is correct.

    Returns:
      The judgement. A grade is its reward; a verdict or a bool has none.

    Raises:
      ValueError: It is something else, a number is not finite or out of range, or a completion
        without a judgement has a reward.
    """
    value = plain_scalar(value)
    if isinstance(value, Judgement):
        return _checked(value)
    if isinstance(value, Verdict):
        return Judgement(value)
    if isinstance(value, bool):
        return Judgement(Verdict.CORRECT if value else Verdict.WRONG)
    if value is None:
        return Judgement(Verdict.NOT_JUDGED)
    if isinstance(value, numbers.Real) and 0 <= value <= 1:
        verdict = Verdict.CORRECT if value >= correct_at else Verdict.WRONG
        return Judgement(verdict, float(value))
    raise ValueError(
        f"must be a Verdict, a Judgement, a bool, a number from 0 to 1, or None, got {shown(value)}"
    )


def as_judgements(
    judge: str, problems: Sequence[Problem], values: Any, correct_at: float = CORRECT_AT
) -> list[Judgement]:
    """Convert what a task's `judge` returned.

    Args:
      judge: Name of the method, for errors.
      problems: The problem of each completion.
      values: What it returned.
      correct_at: As in `as_judgement`.

    Raises:
      JudgeError: There is not one value for each completion, or one is no judgement; the message
        names the problem.
    """
    returned, values = values, listed(values)
    if values is None:
        raise JudgeError(f"{judge}: must return a list, got {shown(returned)}")
    if len(values) != len(problems):
        raise JudgeError(
            f"{judge}: must return one judgement for each of {len(problems)} completions, got "
            f"{len(values)}"
        )
    judgements = []
    for problem, value in zip(problems, values, strict=True):
        try:
            judgements.append(as_judgement(value, correct_at))
        except ValueError as error:
            raise JudgeError(f"{judge}: problem {problem.id}: {error}") from None
    return judgements


def correct_at(task: Any) -> float:
    """The attribute `correct_at` of a task.

    Raises:
      ValueError: It is not a number in (0, 1].
    """
    value = getattr(task, "correct_at", CORRECT_AT)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:
        raise ValueError(
            f"{type(task).__name__}.correct_at: must be a number > 0 and <= 1, got {shown(value)}"
        )
    return float(value)


def _checked(judgement: Judgement) -> Judgement:
    if not isinstance(judgement.verdict, Verdict):
        raise ValueError(f"verdict must be a Verdict, got {shown(judgement.verdict)}")
    if not isinstance(judgement.parts, Mapping):
        raise ValueError(f"parts must be numbers by name, got {shown(judgement.parts)}")
    parts = {name: plain_scalar(value) for name, value in judgement.parts.items()}
    for name, value in parts.items():
        if not isinstance(name, str) or name == GRADED:
            raise ValueError(f"parts must have names other than {GRADED!r}, got {shown(name)}")
        if not is_finite(value):
            raise ValueError(f"parts[{name!r}] must be a finite number, got {shown(value)}")
    reward = plain_scalar(judgement.reward)
    if reward is not None and not is_finite(reward):
        raise ValueError(f"reward must be a finite number, got {shown(reward)}")
    if reward is not None and not judgement.verdict.is_judgement:
        raise ValueError(
            f"reward must be None with the verdict {judgement.verdict.value}, got {shown(reward)}"
        )
    if plain_scalar(judgement.turns) != 0:
        raise ValueError(
            f"turns must be 0, as rewards of turns are those of observations, got "
            f"{shown(judgement.turns)}"
        )
    return dataclasses.replace(
        judgement,
        reward=None if reward is None else float(reward),
        parts={name: float(value) for name, value in parts.items()},
    )


def listed(values: Any) -> list[Any] | None:
    """Return the values of a user's function as a list; None where they have no order.

    What is lazy, such as a generator, is computed here, and may raise anything.
    """
    is_none = isinstance(values, str | bytes | Mapping | Set) or getattr(values, "ndim", 1) == 0
    return None if is_none or not hasattr(values, "__iter__") else list(values)


def is_finite(value: Any) -> bool:
    """Whether a value is a bool, or a finite number that float32 holds."""
    return isinstance(value, numbers.Real) and abs(value) <= FLOAT32_MAX
