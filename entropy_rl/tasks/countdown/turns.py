"""Countdown in turns: the policy chooses an operation, the environment answers with the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entropy_rl.tasks.countdown import game, judge
from entropy_rl.tasks.countdown.task import Countdown
from entropy_rl.tasks.environments.environment import Done, Observation
from entropy_rl.tasks.task import Problem, Verdict


class CountdownTurns:
    """The game of `Countdown` as an environment, in the same grammar, with the same problems.

    A turn ends with the stop string "=", after an operation such as `7 + 3 =`, perhaps with
    `wait` or `undo` before it, or with the end of the completion. The environment verifies the
    operation and answers with what the policy would have to write, `10 2 : 27`: the result, the
    other numbers, and the target. An operation that the rules do not admit ends the episode as a
    wrong one. Needs `rollout.stop: ["="]`.

    Args:
      seed: As in `Countdown`.
      counts: As in `Countdown`.
      bands: As in `Countdown`.
    """

    words, reflective = Countdown.words, Countdown.reflective

    def __init__(
        self,
        *,
        seed: int = 0,
        counts: Mapping[str, int] | None = None,
        bands: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ):
        self._countdown = Countdown(seed=seed, counts=counts, bands=bands)

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of `Countdown`."""
        return self._countdown.problems(split)

    def reset(self, problem: Problem, seed: int) -> None:
        """Begin an episode; the game has no randomness."""
        self._answer, self._text = problem.answer, ""

    def step(self, action: str) -> Observation | Done:
        """Verify an operation, or judge the completed episode."""
        self._text = f"{self._text} {action}".strip()
        words = self._text.split()
        if words[-1:] != ["="]:
            return Done(judge.judge_one(self._answer, self._text))
        state = next_state(self._answer, words)
        if state is None:
            return Done(Verdict.WRONG)
        self._text = f"{self._text} {state}"
        return Observation(state)


def next_state(prompt: str, words: list[str]) -> str | None:
    """The state after the operation that a text ends with.

    Args:
      prompt: The prompt of the problem.
      words: The words of all turns and answers, with `a op b =` at the end.

    Returns:
      The result, the other numbers and the target, as text; None if the grammar or the rules do not
      admit the operation.
    """
    numbers, target = judge.read_prompt(prompt)
    parsed = judge.parse(" ".join(words[:-4]))
    if parsed.broken or parsed.end is not None or len(words) < 4:
        return None
    pool = list(parsed.moves[-1].pool if parsed.moves else numbers)
    a, op, b, _ = words[-4:]
    known = {str(number) for number in pool}
    if op not in ("+", "-", "*") or a not in known or b not in known:
        return None
    step = game.Step(int(a), op, int(b), game.calculate(int(a), op, int(b)))
    if not game.is_legal(*step[:3]) or (step.a == step.b and pool.count(step.a) < 2):
        return None
    return f"{' '.join(map(str, game.take_step(pool, step)))} : {target}"
