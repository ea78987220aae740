"""`Curriculum`: which problems a step has, by what was recorded of earlier steps.

Without a curriculum, the prompts of a step are a function of (seed, step). With one, they are a
function of the seed and of the state of the curriculum, which is part of `TrainState`: a run goes
on from a checkpoint with the same prompts, on any number of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.config.registry import build_named
from entropy_rl.tasks.task import Problem

State = dict[str, np.ndarray]


class ProblemOrder:
    """The problems of a run and of each source, in seeded orders that are shuffled every epoch.

    Attributes:
      sources: Names of the sources, such as the data sets of a mixture.
      source: int32[N], the source of each problem.
    """

    def __init__(self, problems: Sequence[Problem], seed: int):
        self.sources = sorted({problem.source for problem in problems})
        numbers = {name: number for number, name in enumerate(self.sources)}
        self.source = np.array([numbers[problem.source] for problem in problems], np.int32)
        self._members = [np.flatnonzero(self.source == number) for number in numbers.values()]
        self._members.append(np.arange(len(problems)))  # all
        self._seed, self._shuffled = seed, {}

    def __len__(self) -> int:
        return len(self.source)

    def size(self, source: int) -> int:
        """Number of problems of a source; of all for source -1."""
        return len(self._members[source])

    def take(
        self, source: int, start: int, count: int, without: Sequence[int] = ()
    ) -> tuple[list[int], int]:
        """Take the next problems of a source, none of them twice.

        Args:
          source: Its number; -1 for all problems.
          start: Problems of the order that were passed before.
          count: How many; at most those of the source that are not left out.
          without: Problems to pass.

        Returns:
          (places among all problems, problems that have been passed).

        Raises:
          ValueError: The source has fewer problems left.
        """
        members = self._members[source]
        left = len(members) - int(np.isin(members, list(without)).sum())
        if count > left:
            raise ValueError(f"must take at most {left} problems of source {source}, got {count}")
        taken, passed = [], set(without)
        while len(taken) < count:
            place = self._nth(source, start)
            start += 1
            if place not in passed:
                passed.add(place)
                taken.append(place)
        return taken, start

    def _nth(self, source: int, n: int) -> int:
        members = self._members[source]
        epoch, place = divmod(n, len(members))
        if self._shuffled.get(source, (None,))[0] != epoch:
            shuffled = np.random.default_rng([self._seed, source + 1, epoch]).permutation(members)
            self._shuffled[source] = epoch, shuffled
        return int(self._shuffled[source][1][place])


class Curriculum(NamedTuple):
    """Rules that choose the problems of a step.

    Attributes:
      init: (order) -> state before the first step: arrays f32 or int32 by name, whose shapes never
        change. Raises a ValueError if it has no meaning for these problems.
      choose: (state, order, count) -> (places int[count] of the problems of the next step, none of
        them twice; the state after they are drawn). The same for the same state.
      observe: (state after they are drawn, order, places, fraction correct f32[count]) -> the next
        state. A fraction is NaN where no completion of the problem was judged.
      metrics: (state, order) -> metrics by name.
    """

    init: Callable[[ProblemOrder], State]
    choose: Callable[[State, ProblemOrder, int], tuple[np.ndarray, State]]
    observe: Callable[[State, ProblemOrder, np.ndarray, np.ndarray], State]
    metrics: Callable[[State, ProblemOrder], dict[str, float]]


def mixed(places: Sequence[int], seed: int) -> np.ndarray:
    """Mix the problems of a step, which several updates share out in order."""
    return np.random.default_rng(seed).permutation(np.array(places, np.int64))


def build_curriculum(spec: Mapping[str, Any] | None) -> Curriculum | None:
    """Build the curriculum of a config.

        curriculum: {name: replay_failed, fraction: 0.25}

    Args:
      spec: The name of a curriculum of `entropy_rl.curricula` and its arguments; or
        `module:attribute` for your own: a `Curriculum`, or its factory; or None.

    Returns:
      The curriculum; None for None.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    if spec is None:
        return None
    return build_named(spec, "curriculum", Curriculum, returns="a Curriculum")
