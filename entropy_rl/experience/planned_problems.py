"""The problems of a run that a curriculum chooses, and what it observes of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entropy_rl.config.checks import at_place, shown
from entropy_rl.curricula import Curriculum
from entropy_rl.curricula.curriculum import ProblemOrder, State
from entropy_rl.distributed import multihost as hosts
from entropy_rl.experience.experience import Experience
from entropy_rl.experience.scoring import VERDICTS
from entropy_rl.tasks.task import Problem, Verdict


class PlannedProblems:
    """A curriculum for the problems of a run.

    Args:
      curriculum: The rule.
      problems: The problems of the run, in the order of their places.
      seed: Seed of their orders.
      count: Problems of a step.

    Raises:
      ValueError: The rule has no meaning for these problems, or does not choose `count` of them.
    """

    def __init__(self, curriculum: Curriculum, problems: Sequence[Problem], seed: int, count: int):
        self._rule, self._order = curriculum, ProblemOrder(problems, seed)
        self._place = {problem.id: place for place, problem in enumerate(problems)}
        self._count = count
        with at_place("curriculum"):
            self.start = curriculum.init(self._order)
        # A rule that cannot choose or observe is refused here; no problem has been judged yet.
        self._observed(self.start, lambda places: np.full(count, np.nan, np.float32))

    def places(self, state: State) -> np.ndarray:
        """The places of the problems of the next step, int[P].

        Raises:
          ValueError: As the constructor.
        """
        return self._choose(state)[0]

    def _choose(self, state: State) -> tuple[np.ndarray, State]:
        with at_place("curriculum"):
            places, drawn = self._rule.choose(state, self._order, self._count)
        places = np.asarray(places)
        chosen = places.tolist()
        if (
            places.shape != (self._count,)
            or not np.issubdtype(places.dtype, np.integer)
            or min(chosen) < 0
            or max(chosen) >= len(self._order)
            or len(set(chosen)) < len(chosen)
        ):
            raise ValueError(
                f"curriculum: must choose {self._count} different integers from 0 to "
                f"{len(self._order) - 1}, the places of problems, got {shown(chosen)}"
            )
        return places, drawn

    def after(self, state: State, outcomes: Mapping[int, float]) -> tuple[State, dict[str, float]]:
        """Return the state after a step, and metrics.

        Args:
          state: Before it.
          outcomes: Problem id -> fraction of correct completions, of all hosts.
        """
        found = {self._place[id]: fraction for id, fraction in outcomes.items()}
        return self._observed(
            state, lambda places: np.array([found[place] for place in places], np.float32)
        )

    def _observed(
        self, state: State, fractions_of: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[State, dict[str, float]]:
        places, drawn = self._choose(state)
        with at_place("curriculum"):
            new = self._rule.observe(drawn, self._order, places, fractions_of(places))
            if _layout(new) != _layout(self.start):
                raise ValueError(
                    f"observe must return a state as that of init, {_layout(self.start)}, got "
                    f"{_layout(new)}"
                )
            metrics = self._rule.metrics(new, self._order)
            return new, {f"curriculum/{name}": float(value) for name, value in metrics.items()}


def _layout(state: Any) -> Any:
    """Shapes and dtypes by name, which a checkpoint restores."""
    if not isinstance(state, Mapping):
        return type(state).__name__
    return {
        name: f"{(x := np.asarray(value)).dtype}{list(x.shape)}" for name, value in state.items()
    }


def outcomes_of(experience: Experience) -> dict[int, float]:
    """Return the fraction of correct completions of each problem of a step; collective.

    Returns:
      Problem id -> fraction among the completions that were judged; NaN if none was.
    """
    groups = experience.groups
    verdicts = groups.rows["verdicts"].reshape(len(groups.prompt_index), -1)
    judged = np.isin(verdicts, [i for i, v in enumerate(VERDICTS) if v.is_judgement])
    correct = verdicts == VERDICTS.index(Verdict.CORRECT)
    counts = np.stack([correct.sum(-1), judged.sum(-1)], axis=-1)
    own = [[int(id), *map(int, pair)] for id, pair in zip(groups.prompt_index, counts, strict=True)]
    every = [row for part in hosts.gather(own) for row in part]
    return {id: right / count if count else float("nan") for id, right, count in every}
