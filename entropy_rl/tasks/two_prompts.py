"""`TwoPrompts`: the problems of a task, each under two prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from entropy_rl.config.checks import require
from entropy_rl.tasks.judging import as_judgements, correct_at
from entropy_rl.tasks.nested import load_nested
from entropy_rl.tasks.task import Judgement, ProbedTask, Problem

NORMAL, HIGH_ENTROPY = "normal", "high_entropy"  # the sources of the two prompts
_STRIDE = 2**30  # between the ids of the two prompts of a problem


class TwoPrompts:
    """The problems of a task of chat messages, each under its own prompt and under a second one.

    The second prompt has another system message. The two prompts of a problem are two problems of
    the sources `normal` and `high_entropy`: they have samples, a group and metrics of their own,
    and are in the same mini-batch. The task judges both alike.

    Source: Policy Split, https://arxiv.org/abs/2604.11510; its system message was not published.

    Args:
      task: The task, {name: ..., args: {...}}, of a single turn.
      system: System message of the second prompt. It takes the place of the task's own, if there is
        one.
      splits: Splits whose problems have both prompts, those of others have their own; null for
        `train`.

    Raises:
      ValueError: There is no such task, or a setting is wrong.
    """

    def __init__(self, task: dict[str, Any], system: str, splits: list[str] | None = None):
        require(bool(system), "task.args.system", system, "a text")
        self._task = load_nested("task.args.task", task)
        self._system, self._splits = system, tuple(["train"] if splits is None else splits)
        if hasattr(self._task, "final_answers"):
            self.final_answers = self._task.final_answers

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split; the two prompts of one follow each other.

        Raises:
          ValueError: The task has no such split, or its prompts are no chat messages.
        """
        problems = self._task.problems(split)
        if self.prompts_per_problem(split) == 1:
            return [_of_source(NORMAL, problem) for problem in problems]
        return [prompt for problem in problems for prompt in self._prompts(problem)]

    def prompts_per_problem(self, split: str) -> int:
        """Prompts of each problem of a split, which follow each other."""
        return 2 if split in self._splits else 1

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> Sequence[Judgement]:
        """The judgement of each completion by the task."""
        own = [_original(problem) for problem in problems]
        judge = f"{type(self._task).__name__}.judge"
        judged = self._task.judge(own, completions)
        return as_judgements(judge, own, judged, correct_at(self._task))

    def probe(
        self, problems: Sequence[Problem], completions: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """The skill measures of the task, if it has any."""
        if not isinstance(self._task, ProbedTask):
            return {}
        return self._task.probe([_original(problem) for problem in problems], completions)

    def close(self) -> None:
        """Stop the processes of the task."""
        if hasattr(self._task, "close"):
            self._task.close()

    def _prompts(self, problem: Problem) -> tuple[Problem, Problem]:
        path = "task.args.task"
        require(problem.id < _STRIDE, path, problem.id, f"a task whose ids are < {_STRIDE}")
        require(problem.chat, path, problem.prompt, "a task of chat messages, which a system "
                "message needs")  # fmt: skip
        others = tuple(message for message in problem.messages if message[0] != "system")
        second = dataclasses.replace(
            problem, id=_STRIDE + problem.id, messages=(("system", self._system), *others)
        )
        return _of_source(NORMAL, problem), _of_source(HIGH_ENTROPY, second)


def _of_source(name: str, problem: Problem) -> Problem:
    source = f"{name}/{problem.source}" if problem.source else name
    return dataclasses.replace(problem, source=source)


def _original(problem: Problem) -> Problem:
    """The problem as its task gave it, but for the system message."""
    source = problem.source.partition("/")[2]
    return dataclasses.replace(problem, id=problem.id % _STRIDE, source=source)
