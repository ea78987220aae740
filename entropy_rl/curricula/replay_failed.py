"""Problems that failed, sampled again."""

from __future__ import annotations

import numpy as np

from entropy_rl.config.checks import require
from entropy_rl.curricula.curriculum import Curriculum, ProblemOrder, State, mixed


def replay_failed(fraction: float = 0.25, capacity: int = 1024) -> Curriculum:
    """Sample problems again of which no completion was correct, the oldest first.

    A problem waits until it is drawn, or until `capacity` others have failed after it; one that
    fails again waits again. The other problems of a step come in the usual way, each once an epoch.

    Args:
      fraction: Of the problems of a step, at most.
      capacity: Problems that wait.
    """
    require(0 < fraction < 1, "fraction", fraction, "> 0 and < 1")
    require(capacity >= 1, "capacity", capacity, ">= 1")

    def init(order: ProblemOrder) -> State:
        waiting = np.full(capacity, -1, np.int32)  # places, the oldest first
        return {"waiting": waiting, "drawn": np.int32(0), "replayed": np.int32(0)}

    def choose(state: State, order: ProblemOrder, count: int) -> tuple[np.ndarray, State]:
        waiting = state["waiting"][state["waiting"] >= 0]
        most = int(round(fraction * count, 9))  # 1/49 * 49 is less than 1
        require(most > 0, "fraction", fraction, f">= 1/{count}, a problem of the {count} of a step")
        again = waiting[:most]
        # Too few others would be left of a small set.
        again = again[: max(0, len(order) - count)]
        new, drawn = order.take(-1, int(state["drawn"]), count - len(again), again.tolist())
        left = {"waiting": _padded(waiting[len(again) :], capacity)}
        counts = {"drawn": np.int32(drawn), "replayed": np.int32(len(again))}
        return mixed([*again.tolist(), *new], drawn), state | left | counts

    def observe(
        state: State, order: ProblemOrder, places: np.ndarray, correct: np.ndarray
    ) -> State:
        waiting = state["waiting"][state["waiting"] >= 0]
        failed = places[correct == 0]
        kept = [place for place in waiting.tolist() if place not in set(places.tolist())]
        return state | {"waiting": _padded(np.array([*kept, *failed], np.int32), capacity)}

    def metrics(state: State, order: ProblemOrder) -> dict[str, float]:
        waiting = float((state["waiting"] >= 0).sum())
        return {"replayed": float(state["replayed"]), "waiting": waiting}

    return Curriculum(init, choose, observe, metrics)


def _padded(places: np.ndarray, capacity: int) -> np.ndarray:
    newest = places[max(0, len(places) - capacity) :]
    return np.pad(newest, (0, capacity - len(newest)), constant_values=-1).astype(np.int32)
