"""The interface of environments: tasks whose episodes have several turns.

A user's environment is one file with one class, named in the config as any task:

    class GuessTheNumber:
        def problems(self, split):
            return [Problem(i, "Guess my number from 1 to 8.", str(i % 8 + 1), chat=True)
                    for i in range(100)]

        def reset(self, problem, seed):
            self.number = int(problem.answer)

        def step(self, action):
            found = re.search(r"\\d+", action)
            if found and int(found[0]) == self.number:
                return Done(True)
            return "Too small." if found and int(found[0]) < self.number else "Too large."
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from entropy_rl.tasks.task import Judged, Problem


@dataclasses.dataclass(frozen=True)
class Observation:
    """The answer of an environment to a turn, after which the model has another turn.

    Attributes:
      text: What the model reads next. Several texts are as many messages of the same role, such as
        the results of several tool calls.
      reward: The reward of the turn; the reward of the episode is the sum.
      role: Of the message, for a chat template: "user", or "tool" for the result of a tool.
      parts: Counts by name. Their sums over the episode are parts of its judgement.
    """

    text: str | Sequence[str]
    reward: float = 0.0
    role: str = "user"
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Done:
    """The end of an episode.

    Attributes:
      judgement: What a task's `judge` may return for a completion: a verdict, a bool, a grade, a
        `Judgement`, or None for an episode that is not judged.
    """

    judgement: Judged


@runtime_checkable
class Environment(Protocol):
    """A task with episodes: `problems`, `reset` and `step`; it needs no `judge`.

    Each episode has a shallow copy of the object of its own, in a worker process that may be killed
    at any time. It is then set up again by `reset` and the recorded actions: a state must be a
    function of the problem, the seed and the actions.
    """

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split in a fixed order. The prompt is the first observation."""
        ...

    def reset(self, problem: Problem, seed: int) -> Any:
        """Begin an episode.

        Args:
          problem: The problem; of a subclass of `Problem`, the fields of `Problem` only.
          seed: From the seed of the run, the step, the problem and the sample.
        """
        ...

    def step(self, action: str) -> Observation | Done | str:
        """Answer a turn.

        Args:
          action: The text of the turn, without special tokens.

        Returns:
          An observation, or its text; or the end of the episode.
        """
        ...


def is_environment(task: Any) -> bool:
    """Whether the episodes of a task have several turns."""
    return callable(getattr(task, "reset", None)) and callable(getattr(task, "step", None))
