"""What responses are like from step to step: how much of each behavior, with which entropy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from entropy_rl.analysis.behaviors import REFLECTIVE_NAME, Annotated
from entropy_rl.stats.diversity import repetition_rate


@dataclasses.dataclass(frozen=True)
class Rate:
    """Attributes: how often in a response, on average, and the mean entropy (nats) where it is
    found.
    """

    per_response: float
    entropy: float


@dataclasses.dataclass(frozen=True)
class Point:
    """The responses of one step.

    Attributes:
      step: The step.
      responses: How many.
      length: Tokens of a response.
      entropy: Mean over all tokens, nats.
      repetition: Share of the 4-grams of a response that it has had before.
      behaviors: Class of words, or "reflective" for sentences -> rate.
    """

    step: int
    responses: int
    length: float
    entropy: float
    repetition: float
    behaviors: dict[str, Rate]


def dynamics(annotated: Sequence[Annotated]) -> list[Point]:
    """One point for each step that responses were drawn in, in order."""
    by_step: dict[int, list[Annotated]] = {}
    for one in annotated:
        if one.response.step is not None:
            by_step.setdefault(one.response.step, []).append(one)
    return [point(step, by_step[step]) for step in sorted(by_step)]


def point(step: int, annotated: Sequence[Annotated]) -> Point:
    """The responses of one step, one at least."""
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
