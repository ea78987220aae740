"""Rewards of judgements: the verdict, the task's graded reward and its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from entropy_rl.config.checks import require
from entropy_rl.rewards.reward import Reward
from entropy_rl.tasks.task import Judgement, Verdict


def correct(right: float = 1.0, wrong: float = -1.0) -> Reward:
    """Reward the verdict: `right` for a correct completion, `wrong` for any other.

    Args:
      right: Reward of a correct completion.
      wrong: Reward of a wrong or unparsable one.

    Raises:
      ValueError: `right` is not larger than `wrong`.
    """
    require(right > wrong, "correct.right", right, f"> wrong ({wrong})")
    return Reward(
        lambda judgements: [
            right if one.verdict is Verdict.CORRECT else wrong for one in judgements
        ],
        bounds=(wrong, right),
    )


def graded(right: float = 1.0, wrong: float = 0.0) -> Reward:
    """Reward by the task's own grade, and by the verdict where the task gives no grade.

    The rewards of the turns of an episode are added.

    Args:
      right: Reward of a correct completion without a grade.
      wrong: Reward of a wrong or unparsable one without a grade.

    Raises:
      ValueError: `right` is not larger than `wrong`.
    """
    require(right > wrong, "graded.right", right, f"> wrong ({wrong})")
    return Reward(
        lambda judgements: [one.grade(right, wrong) for one in judgements],
        has_turns=True,
        bounds=(wrong, right),
    )


def part(part: str, missing: float | None = None) -> Reward:
    """Reward by one of the parts that the task gives with its judgements.

    Args:
      part: Name of the part; the label of the reward.
      missing: Reward of a completion without this part, such as an episode that has reached a
        limit; None if each must have it.
    """

    def of_part(judgements: Sequence[Judgement]) -> list[float]:
        for judgement in judgements:
            if part not in judgement.parts and missing is None:
                names = ", ".join(judgement.parts) or "none"
                raise ValueError(f"the task must give the part {part!r}, got {names}")
        return [judgement.parts.get(part, missing) for judgement in judgements]

    bounds = None if missing is None else (min(missing, 0.0), math.inf)
    return Reward(of_part, bounds=bounds)
