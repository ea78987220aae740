"""Frequency and entropy of behaviors over training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from entropy_rl.analysis.behaviors import REFLECTIVE_NAME, Annotated
from entropy_rl.stats.diversity import repetition_rate


@dataclasses.dataclass(frozen=True)
class Rate:
    """Mean count per response of a behavior, and the mean entropy (nats) of its occurrences."""

    per_response: float
    entropy: float


@dataclasses.dataclass(frozen=True)
class Point:
    """The responses of one step.

    Attributes:
      step: The step.
      responses: Number of responses.
      length: Mean tokens per response.
      entropy: Mean over all tokens, nats.
      repetition: Fraction of the 4-grams of a response that occurred in it before.
      behaviors: Word class, or "reflective" for sentences -> rate.
    """

    step: int
    responses: int
    length: float
    entropy: float
    repetition: float
    behaviors: dict[str, Rate]


def dynamics(annotated: Sequence[Annotated]) -> list[Point]:
    """One point for each training step with responses, in order."""
    by_step: dict[int, list[Annotated]] = {}
    for one in annotated:
        if one.response.step is not None:
            by_step.setdefault(one.response.step, []).append(one)
    return [point(step, by_step[step]) for step in sorted(by_step)]


def point(step: int, annotated: Sequence[Annotated]) -> Point:
    """Summarize the responses of one step, at least one."""
    responses = [a.response for a in annotated]
    entropies = {
        name: [a.response.entropy[a.pivotal.classes[name]] for a in annotated]
        for name in annotated[0].pivotal.classes
    }
    entropies[REFLECTIVE_NAME] = [a.sentence_entropy[a.reflective] for a in annotated]
    return Point(
        step=step,
        responses=len(responses),
        length=float(np.mean([len(r.tokens) for r in responses])),
        entropy=_mean(np.concatenate([r.entropy for r in responses])),
        repetition=float(np.mean([repetition_rate(r.tokens) for r in responses])),
        behaviors={
            name: Rate(sum(map(len, values)) / len(responses), _mean(np.concatenate(values)))
            for name, values in entropies.items()
        },
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
