"""`Reward`, a function of completions, and `Rewards`, the weighted sum of several."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.config.checks import require, shown
from entropy_rl.config.rewards import MOST_REWARD
from entropy_rl.config.values import plain_scalar
from entropy_rl.tasks.judging import is_finite, listed
from entropy_rl.tasks.task import JudgeError, Judgement, Problem
from entropy_rl.tasks.worker import describe

# What a reward function may have as parameters, each with one entry per completion.
INPUTS = ("completions", "problems", "judgements", "completion_ids")


@dataclasses.dataclass(frozen=True)
class Reward:
    """A reward function.

    It is called by keyword with those of these that it has as parameters, for the judged
    completions of whole groups: `completions` (texts without special tokens), `problems`,
    `judgements` and `completion_ids` (token ids, the end-of-sequence token included). It returns a
    number for each completion, or None for one that it does not judge: that sample leaves baseline
    and loss, as after a check that timed out. The number must not depend on the completions of
    other problems.

    Attributes:
      fn: The function.
      close: Releases what the function holds, such as worker processes.
      has_turns: Whether the rewards of the turns of an episode are part of the number.
      bounds: The smallest and the largest number, but for grades and turns of the task; None if
        unknown.
    """

    fn: Callable[..., Sequence[float | None]]
    close: Callable[[], None] = lambda: None
    has_turns: bool = False
    bounds: tuple[float, float] | None = None

    def __post_init__(self):
        require(
            bool(input_names(self.fn)),
            "Reward.fn",
            self.fn,
            f"a function with at least one of the parameters {', '.join(INPUTS)}",
        )

    def __call__(self, inputs: Mapping[str, Sequence[Any]]) -> Sequence[float | None]:
        """Call the function with what it takes of `inputs`, which has all of `INPUTS`."""
        return self.fn(**{name: inputs[name] for name in input_names(self.fn)})


def input_names(function: Callable[..., Any]) -> list[str]:
    """The inputs that a function takes; all of them where it takes any keyword."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return list(INPUTS)
    return [name for name in INPUTS if name in parameters]


class RewardValues(NamedTuple):
    """Rewards of B completions.

    Attributes:
      total: f32[B], the weighted sum; 0 where there is no reward.
      has_reward: bool[B], False where the verifier failed or did not judge, or a reward with a
        weight did not judge.
      by_label: f32[B] of each reward by its label, without its weight; NaN where there is none.
    """

    total: np.ndarray
    has_reward: np.ndarray
    by_label: dict[str, np.ndarray]


class Entry(NamedTuple):
    """A reward of a config: its label, weight, function, and its name in errors."""

    label: str
    weight: float
    reward: Reward
    where: str


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The weighted sum of reward functions.

    Attributes:
      entries: The rewards.
      is_named: Whether metrics and records have the single rewards, as for the section `rewards`.
    """

    entries: tuple[Entry, ...]
    is_named: bool = True

    @property
    def weight_of_turns(self) -> float:
        """The factor of the rewards of turns in the sum."""
        return sum(entry.weight for entry in self.entries if entry.reward.has_turns)

    @property
    def lowest(self) -> float:
        """The smallest weighted sum, where a reward without known bounds is at least 0."""
        return sum(
            min(entry.weight * bound for bound in entry.reward.bounds or (0.0, math.inf))
            for entry in self.entries
            if entry.weight
        )

    def __call__(
        self,
        completions: Sequence[str],
        problems: Sequence[Problem],
        judgements: Sequence[Judgement],
        completion_ids: Sequence[np.ndarray],
    ) -> RewardValues:
        """Compute the rewards of completions.

        Args:
          completions: Their texts.
          problems: The problem of each.
          judgements: The judgement of each.
          completion_ids: The token ids of each.

        Raises:
          ValueError: A function failed, or did not return a finite number or None for each
            completion, one line that names the function and the problem; or a number or a sum is
            above 1e15.
        """
        judged = np.array([one.verdict.is_judgement for one in judgements], bool)
        arrays = (completions, problems, judgements, completion_ids)
        inputs = {
            name: [values[i] for i in np.flatnonzero(judged)]
            for name, values in zip(INPUTS, arrays, strict=True)
        }
        total, has_reward, by_label = np.zeros(len(judged)), judged.copy(), {}
        for label, weight, reward, where in self.entries:
            values = np.full(len(judged), np.nan)
            if judged.any():
                values[judged] = _evaluate(reward, inputs, where)
            by_label[label] = values.astype(np.float32)
            if weight != 0:
                has_reward &= ~np.isnan(values)
                total += weight * np.nan_to_num(values)
        # Summed in float64, so that equal sums of several rewards are equal in float32.
        total = np.where(has_reward, total, 0)
        largest = float(np.abs(total).max(initial=0))
        require(largest <= MOST_REWARD, "rewards", largest, f"a weighted sum up to {MOST_REWARD:g}")
        return RewardValues(total.astype(np.float32), has_reward, by_label if self.is_named else {})

    def close(self) -> None:
        """Release what the functions hold."""
        for entry in self.entries:
            entry.reward.close()


def _evaluate(reward: Reward, inputs: dict[str, list[Any]], where: str) -> list[float]:
    """The values of one function, NaN for None."""
    problems = inputs["problems"]
    try:
        returned = reward(inputs)
        found = listed(returned)
    except JudgeError:
        raise
    except (Exception, SystemExit) as error:
        failed = _first_failing(reward, inputs)
        blamed = f"{len(problems)} completions" if failed is None else f"problem {failed}"
        raise ValueError(f"{where}: failed for {blamed}: {describe(error)}") from error
    if found is None:
        raise ValueError(f"{where}: must return a list of numbers, got {shown(returned)}")
    found = [plain_scalar(value) for value in found]
    if len(found) != len(problems):
        raise ValueError(
            f"{where}: must return one number for each of {len(problems)} completions, got "
            f"{len(found)}"
        )
    for problem, value in zip(problems, found, strict=True):
        if value is not None and not (is_finite(value) and abs(value) <= MOST_REWARD):
            raise ValueError(
                f"{where}: must return finite numbers up to {MOST_REWARD:g} or None, got "
                f"{shown(value)} for problem {problem.id}"
            )
    return [float("nan") if value is None else float(value) for value in found]


def _first_failing(reward: Reward, inputs: dict[str, list[Any]]) -> int | None:
    """Id of the first problem for which the function fails alone; None if it fails for none."""
    for i, problem in enumerate(inputs["problems"]):
        try:
            listed(reward({name: values[i : i + 1] for name, values in inputs.items()}))
        except (Exception, SystemExit):
            return problem.id
    return None
