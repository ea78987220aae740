"""The sections `reward` and `rewards`: rewards of verdicts, and reward functions with weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.config.checks import check_numbers, require
from entropy_rl.config.values import check_value

LABEL = re.compile(r"[A-Za-z0-9][\w.-]*")
# float32 holds the sum of the squares of as many as there are tokens in a rollout.
MOST_REWARD = 1e15
# Fields of an entry that are no arguments of its function.
OWN_FIELDS = ("name", "weight", "label")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Rewards of the verdicts. Samples whose check timed out or crashed get none and are excluded.

    It is short for `rewards: [{name: graded, right: CORRECT, wrong: WRONG}]`: a completion that the
    task grades has its grade instead.

    Args:
      correct: Reward of a correct completion, at most 1e15.
      wrong: Reward of a wrong or unparsable one, at least -1e15.
    """

    correct: float = 1.0
    wrong: float = -1.0

    def __post_init__(self):
        check_numbers(self, "reward")
        for name in ("correct", "wrong"):
            value = getattr(self, name)
            expected = f"at most {MOST_REWARD:g} in size"
            require(abs(value) <= MOST_REWARD, f"reward.{name}", value, expected)
        require(
            self.correct > self.wrong,
            "reward.correct",
            self.correct,
            f"> reward.wrong ({self.wrong})",
        )


def reward_weights(specs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the weights of the section `rewards` by label.

    The label names a reward in metrics and records: the entry's `label`, else the `part` that it
    names, else the name of its function without its module.

    Args:
      specs: The entries.

    Raises:
      ValueError: An entry has no name, two have the same label, a weight is not a number, or all
        weights are 0.
    """
    weights: dict[str, float] = {}
    for i, spec in enumerate(specs):
        path = f"rewards[{i}]"
        require(isinstance(spec, Mapping), path, spec, "a mapping {name: ..., arguments}")
        name = spec.get("name", "")
        require(isinstance(name, str), f"{path}.name", name, "a string")
        if name == "part":
            require("part" in spec, f"{path}.part", None, "the name of a part of the judgement")
        default = spec.get("part") if name == "part" else name.rpartition(":")[2]
        label = spec.get("label", default)
        is_label = isinstance(label, str) and LABEL.fullmatch(label) and not label.endswith("_std")
        # Without a name, `build_named` lists the names.
        require(
            bool(is_label) or not name,
            f"{path}.label",
            label,
            "letters, digits, '_', '.' and '-', without '_std' at the end",
        )
        if label in weights:
            other = list(weights).index(label)
            raise ValueError(
                f"{path}.label: must be another one than that of rewards[{other}], got {label!r}"
            )
        weights[label] = check_value(spec.get("weight", 1.0), float, f"{path}.weight")
    require(
        not weights or any(weights.values()),
        "rewards",
        list(weights.values()),
        "a list with at least one weight other than 0",
    )
    return weights
