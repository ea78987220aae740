"""Weights of the sources of a mixture by the success on their problems."""

from __future__ import annotations

import numpy as np

from entropy_rl.config.checks import require
from entropy_rl.curricula.curriculum import Curriculum, ProblemOrder, State, mixed


def learnability(rate: float = 0.1, floor: float = 0.2) -> Curriculum:
    """Weight the sources of a mixture by the learnability p (1 - p) of their problems.

    With the success p_s of source s, an exponential moving average of the fraction of correct
    completions that starts at 1/2, the share of its problems in a step is

        w_s = (1 - floor) p_s (1 - p_s) / Σ p (1 - p) + floor / S

    Shares are exact over several steps: what one step rounds away is owed to the next. A source
    never has more problems in a step than there are of it.

    Source: the learnability of "No Regrets", https://arxiv.org/abs/2408.15099, Section 4, for
    sources rather than levels; the moving average and the floor are ours.

    Args:
      rate: Weight of the newest step in the average.
      floor: Fraction of the problems that all sources have in equal parts.
    """
    require(0 < rate <= 1, "rate", rate, "> 0 and <= 1")
    require(0 < floor <= 1, "floor", floor, "> 0 and <= 1")

    def init(order: ProblemOrder) -> State:
        if len(order.sources) == 1:
            raise ValueError(
                "must be null or another one for a task whose problems have a single source, got "
                "'learnability'"
            )
        sources = len(order.sources)
        return {
            "success": np.full(sources, 0.5, np.float32),
            "drawn": np.zeros(sources, np.int32),
            "owed": np.zeros(sources, np.float32),
        }

    def shares(state: State) -> np.ndarray:
        success = state["success"].astype(np.float64)
        worth = success * (1 - success)
        total = worth.sum()
        worth = worth / total if total > 0 else np.full(len(worth), 1 / len(worth))
        return (1 - floor) * worth + floor / len(worth)

    def choose(state: State, order: ProblemOrder, count: int) -> tuple[np.ndarray, State]:
        sizes = np.array([order.size(source) for source in range(len(order.sources))])
        owed = state["owed"] + count * shares(state)
        counts = np.minimum(np.floor(owed).clip(0), sizes).astype(int)
        while counts.sum() > count:
            counts[np.argmax(np.where(counts > 0, counts - owed, -np.inf))] -= 1
        while counts.sum() < count:
            counts[np.argmax(np.where(counts < sizes, owed - counts, -np.inf))] += 1
        places, drawn = [], state["drawn"].copy()
        for source, number in enumerate(counts):
            taken, drawn[source] = order.take(source, int(drawn[source]), int(number))
            places += taken
        # What a small source cannot give is not owed for ever.
        owed = (owed - counts).clip(-count, count).astype(np.float32)
        return mixed(places, int(drawn.sum())), state | {"drawn": drawn, "owed": owed}

    def observe(
        state: State, order: ProblemOrder, places: np.ndarray, correct: np.ndarray
    ) -> State:
        success = state["success"].copy()
        for source in range(len(success)):
            found = correct[(order.source[places] == source) & ~np.isnan(correct)]
            if len(found):
                success[source] += rate * (found.mean() - success[source])
        return state | {"success": success}

    def metrics(state: State, order: ProblemOrder) -> dict[str, float]:
        values = zip(order.sources, shares(state), state["success"], strict=True)
        return {
            name: float(value)
            for source, share, success in values
            for name, value in ((f"share/{source}", share), (f"success/{source}", success))
        }

    return Curriculum(init, choose, observe, metrics)
