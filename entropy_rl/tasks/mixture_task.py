"""`Mixture`: the problems of several tasks in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from entropy_rl.config.checks import require
from entropy_rl.tasks.judging import as_judgements, correct_at
from entropy_rl.tasks.mixture import interleave, split_weight
from entropy_rl.tasks.nested import load_nested, read_dialogues
from entropy_rl.tasks.task import Judgement, ProbedTask, Problem, Task

_STRIDE = 2**24  # between the ids of two tasks
_MOST = 2**31 // _STRIDE  # tasks


class Mixture:
    """The problems of several tasks of a single turn, each judged by its own task.

    A problem's `source` begins with the name of its task, by which metrics are told apart. Without
    weights a run has all problems. With weights w the split `train` has the largest number
    of problems whose shares are w / Σ w, the first ones of each task; other splits have all.

    Args:
      tasks: Name -> {name: ..., args: {...}, weight: ...}, all with a weight or none.
      system: System message before the messages of each chat prompt, which must have none.
      examples: Worked examples before each chat prompt: a list of dialogues, each a list of
        messages {role: ..., content: ...}.

    Raises:
      ValueError: There is no such task, or a setting is wrong.
    """

    def __init__(
        self,
        tasks: dict[str, Any],
        system: str | None = None,
        examples: list[Any] | None = None,
    ):
        path = "task.args.tasks"
        names_are_plain = all("/" not in str(name) for name in tasks)
        require(names_are_plain, path, [*tasks], "a mapping from names without a slash")
        require(isinstance(tasks, Mapping) and 2 <= len(tasks) <= _MOST, path, tasks,
                f"a mapping of 2 to {_MOST} tasks")  # fmt: skip
        self._tasks: dict[str, Task] = {}
        self._weights: dict[str, float] = {}
        for name, given in tasks.items():
            require(isinstance(given, Mapping), f"{path}.{name}", given, "a mapping of settings")
            weight, spec = split_weight(f"{path}.{name}", given)
            if "weight" in given:
                self._weights[name] = weight
            self._tasks[str(name)] = load_nested(f"{path}.{name}", spec)
        is_whole = len(self._weights) in (0, len(tasks))
        require(is_whole, path, [*self._weights], "tasks that all have a weight, or none")
        self._system = () if system is None else (("system", system),)
        self._examples = read_dialogues("task.args.examples", examples or [])

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split of all tasks, which alternate by their shares.

        Raises:
          ValueError: A task has no such split, or too many problems; or messages do not fit a
            problem.
        """
        parts = {name: task.problems(split) for name, task in self._tasks.items()}
        sizes = {name: len(part) for name, part in parts.items()}
        if self._weights and split == "train":
            # The decimal numbers of the config: 3 / 0.7 * 0.7 is less than 3 in floats.
            weights = {name: Fraction(repr(weight)) for name, weight in self._weights.items()}
            unit = min(sizes[name] / weight for name, weight in weights.items())
            sizes = {name: max(1, int(unit * weight)) for name, weight in weights.items()}
        names = [*parts]
        return [
            self._problem(number, parts[names[number]][i])
            for number, i in interleave([sizes[name] for name in names])
        ]

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> Sequence[Judgement]:
        """The judgement of each completion by the task of its problem."""
        judged: list[Judgement | None] = [None] * len(problems)
        for name, places, own, texts in self._by_task(problems, completions):
            task = self._tasks[name]
            found = as_judgements(
                f"{type(task).__name__}.judge", own, task.judge(own, texts), correct_at(task)
            )
            for place, judgement in zip(places, found, strict=True):
                judged[place] = judgement
        return judged

    def probe(
        self, problems: Sequence[Problem], completions: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """The skill measures of the tasks that have any, with the name of the task before them."""
        return {
            f"{name}/{measure}": ratio
            for name, _, own, texts in self._by_task(problems, completions)
            if isinstance(self._tasks[name], ProbedTask)
            for measure, ratio in self._tasks[name].probe(own, texts).items()
        }

    def close(self) -> None:
        """Stop the processes of the tasks."""
        for task in self._tasks.values():
            if hasattr(task, "close"):
                task.close()

    def _by_task(
        self, problems: Sequence[Problem], completions: Sequence[str]
    ) -> Iterator[tuple[str, list[int], list[Problem], list[str]]]:
        """(name, places, problems as the task gave them, completions) of each task."""
        for number, name in enumerate(self._tasks):
            places = [i for i, p in enumerate(problems) if p.id // _STRIDE == number]
            if places:
                own = [_original(problems[i]) for i in places]
                yield name, places, own, [completions[i] for i in places]

    def _problem(self, number: int, problem: Problem) -> Problem:
        name = [*self._tasks][number]
        path = f"task.args.tasks.{name}"
        require(
            problem.id < _STRIDE, path, problem.id, f"a task whose ids of problems are < {_STRIDE}"
        )
        before = (*self._system, *self._examples)
        if before:
            require(problem.chat, path, problem.prompt, "a task of chat messages, which system "
                    "and examples need")  # fmt: skip
            has_system = any(role == "system" for role, _ in problem.messages)
            require(not (self._system and has_system), "task.args.system", self._system[0][1],
                    f"null with {name}, which has a system message")  # fmt: skip
            own_system = problem.messages[:has_system]
            before = (*own_system, *before, *problem.messages[has_system:])
        return dataclasses.replace(
            problem,
            id=number * _STRIDE + problem.id,
            source=f"{name}/{problem.source}" if problem.source else name,
            messages=before or problem.messages,
        )


def _original(problem: Problem) -> Problem:
    """The problem as its task gave it, but for the messages before it."""
    source = problem.source.partition("/")[2]
    return dataclasses.replace(problem, id=problem.id % _STRIDE, source=source)
