"""`build_rewards`: the sections `reward` and `rewards` of a config become `Rewards`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.config.registry import build_named
from entropy_rl.config.rewards import OWN_FIELDS, RewardConfig, reward_weights
from entropy_rl.rewards.judged import graded
from entropy_rl.rewards.reward import INPUTS, Entry, Reward, Rewards


def build_rewards(
    specs: Sequence[Mapping[str, Any]],
    short: RewardConfig = RewardConfig(),
    max_new_tokens: int | None = None,
) -> Rewards:
    """Build the rewards of a config.

        rewards:
          - {name: correct, right: 1.0, wrong: 0.0}
          - {name: format, pattern: ".* done", weight: 0.2}
          - {name: "mine:polite", weight: 0.1}

    Args:
      specs: The section `rewards`. A name is that of a function of `entropy_rl.rewards`, or
        `module:function` for your own: a reward function (see `Reward`), whose other parameters
        are arguments of the entry, or a factory that returns one.
      short: The section `reward`, which is used if there is no section `rewards`.
      max_new_tokens: Limit of new tokens of the rollout, given to each function that has such a
        parameter.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    if not specs:
        reward = graded(right=short.correct, wrong=short.wrong)
        return Rewards((Entry("graded", 1.0, reward, "reward"),), is_named=False)
    weights = reward_weights(specs)
    given = {}
    if max_new_tokens is not None:
        given["max_new_tokens"] = (max_new_tokens, "rollout.max_new_tokens")
    returns = f"a function of {', '.join(INPUTS[:-1])} or {INPUTS[-1]}"
    entries = []
    for i, (spec, (label, weight)) in enumerate(zip(specs, weights.items(), strict=True)):
        path = f"rewards[{i}]"
        spec = {k: v for k, v in spec.items() if k == "name" or k not in OWN_FIELDS}
        reward = build_named(
            spec,
            path,
            Reward,
            returns=returns,
            wrap=Reward,
            given=given,
            inputs=INPUTS,
            reserved=OWN_FIELDS,
        )
        entries.append(Entry(label, weight, reward, f"{path} ({spec['name']})"))
    return Rewards(tuple(entries))
