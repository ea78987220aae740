"""Rewards of the length of a completion in tokens, the end-of-sequence token included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from entropy_rl.advantages.penalties import check_overlong, soft_overlong
from entropy_rl.rewards.reward import Reward
from entropy_rl.tasks.task import Judgement, Problem, Verdict


def length() -> Reward:
    """Reward short completions among those of a problem.

    λᵢ = 1/2 - (|oᵢ| - min |o|) / (max |o| - min |o|); rᵢ = λᵢ if correct, else min(0, λᵢ)

    over the judged completions of the problem; 0 where all have the same length. Source: Kimi k1.5,
    https://arxiv.org/abs/2501.12599, §2.3.3.
    """

    def compare(
        completion_ids: Sequence[np.ndarray],
        problems: Sequence[Problem],
        judgements: Sequence[Judgement],
    ) -> list[float]:
        lengths = [len(ids) for ids in completion_ids]
        of_problem: dict[int, list[int]] = defaultdict(list)
        for problem, tokens in zip(problems, lengths, strict=True):
            of_problem[problem.id].append(tokens)
        values = []
        for problem, judgement, tokens in zip(problems, judgements, lengths, strict=True):
            shortest, longest = min(of_problem[problem.id]), max(of_problem[problem.id])
            value = 0.0
            if longest > shortest:
                value = 0.5 - (tokens - shortest) / (longest - shortest)
            correct = judgement.verdict is Verdict.CORRECT
            values.append(value if correct else min(0.0, value))
        return values

    return Reward(compare, bounds=(-0.5, 0.5))


def overlong(max_new_tokens: int, buffer_tokens: int) -> Reward:
    """Soft overlong punishment of DAPO: from 0 to -1 over the last tokens before the limit.

        r = -clip((|o| - (L_max - L_buf)) / L_buf, 0, 1)

    The transform `overlong_penalty` has the same formula behind dynamic sampling, which then
    compares the other rewards alone, as DAPO does. Source: Eq. 13 of DAPO,
    https://arxiv.org/abs/2503.14476.

    Args:
      max_new_tokens: L_max, the limit of new tokens.
      buffer_tokens: L_buf, in 1 .. L_max.

    Raises:
      ValueError: An argument is out of range.
    """
    check_overlong("overlong", max_new_tokens, buffer_tokens)

    def penalize(completion_ids: Sequence[np.ndarray]) -> np.ndarray:
        lengths = np.array([len(ids) for ids in completion_ids], np.float32)
        return -soft_overlong(lengths, max_new_tokens, buffer_tokens)

    return Reward(penalize, bounds=(-1.0, 0.0))
