"""`EnvironmentTask`: an environment as a task, with the processes that step its episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.config.common import EpisodesConfig
from entropy_rl.tasks.environments.environment import Environment
from entropy_rl.tasks.environments.pool import EnvironmentPool
from entropy_rl.tasks.task import JudgeError, Judgement, Problem


class EnvironmentTask:
    """A task whose completions are episodes, judged by their environment at the end.

    Other attributes, such as `final_answers`, are those of the environment.

    Attributes:
      environment: Gives the problems.
      limits: Turns and tokens of an episode.
      pool: Steps episodes.
    """

    def __init__(
        self,
        environment: Environment,
        factory: str,
        args: Mapping[str, Any],
        limits: EpisodesConfig,
    ):
        """
        Args:
          environment: The environment.
          factory: Its class as "module:Class", for the workers.
          args: Its keyword arguments.
          limits: Of episodes.

        Raises:
          ValueError: A limit contradicts a setting of the environment, which checks it by its
            method `check_limits`, if it has one.
        """
        if hasattr(environment, "check_limits"):
            environment.check_limits(limits)
        self.environment, self.limits = environment, limits
        # From Python 3.12 on, an isinstance check of a protocol does not ask `__getattr__`.
        for name in ("final_answers", "probe"):
            if hasattr(environment, name):
                setattr(self, name, getattr(environment, name))
        self.pool = EnvironmentPool(
            factory,
            args,
            workers=limits.workers,
            deadline_s=limits.deadline_s,
            memory_limit_bytes=int(limits.memory_gib * 2**30),
        )

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of the environment."""
        return self.environment.problems(split)

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Judgement]:
        """Environments judge episodes, not texts.

        Raises:
          JudgeError: Always.
        """
        raise JudgeError(
            f"{type(self.environment).__name__}: must be stepped, as its episodes have several "
            "turns; a completion alone cannot be judged"
        )

    def close(self) -> None:
        """Kill the workers."""
        self.pool.close()

    def __getattr__(self, name: str) -> Any:
        if name == "environment":  # not set yet, while it is unpickled or copied
            raise AttributeError(name)
        return getattr(self.environment, name)
