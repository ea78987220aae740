"""What a task is: problems, and how an answer is judged. A user's own task is one file with one
class.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


class Verdict(enum.Enum):
    """The outcome of judging one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"  # no answer could be read from the completion; as wrong as WRONG
    TIMEOUT = "timeout"  # the check did not end in time: no judgement
    CRASH = "crash"  # the check died: no judgement

    @property
    def is_judgement(self) -> bool:
        """False where the verifier failed rather than the completion: such a sample has no
        reward.
        """
        return self not in (Verdict.TIMEOUT, Verdict.CRASH)


class JudgeError(RuntimeError):
    """A judge that cannot judge: it does not start, or gives no verdicts. The message says which
    and why.
    """


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem. `id` is unique within its split and fixes the randomness of its samples."""

    id: int
    prompt: str  # as the model sees it, before tokenization
    answer: str  # what the verifier needs; its form is the task's own business
    chat: bool = False  # True: `prompt` is a user's message, to be wrapped by the chat template


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One sequence for the supervised warm start.

    `pieces` is the completion cut into strings that are tokenized one by one; `weights` has the
    loss weight of each piece. A weight may depend on the position only, never on the token that
    stands there, or the learned distribution is biased.
    """

    prompt: str
    pieces: tuple[str, ...]
    weights: tuple[float, ...]


@runtime_checkable
class Task(Protocol):
    """A task. Only `problems` and `judge` are needed for RL and evaluation."""

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split, by index, in a fixed order."""
        ...

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """One verdict for each completion, in order. `completions` are decoded without special
        tokens.
        """
        ...


@runtime_checkable
class ProbedTask(Task, Protocol):
    """A task that can also say how sound the single steps of a completion are."""

    def probe(
        self, problems: Sequence[Problem], completions: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Skill measures as name -> (numerator, denominator), so that they can be pooled."""
        ...


@runtime_checkable
class AnsweringTask(Task, Protocol):
    """A task that can also say what a completion's final answer is, for votes and for counting
    answers.
    """

    def final_answers(self, completions: Sequence[str]) -> list[str | None]:
        """The final answer of each completion, None where there is none; equal answers are equal
        texts.
        """
        ...


@runtime_checkable
class DemonstratedTask(Task, Protocol):
    """A task with worked examples for the supervised warm start."""

    def demonstration(self, seed: int, index: int) -> Demonstration:
        """The index-th worked example; a pure function of its arguments."""
        ...

    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of a model that is trained from scratch on them."""
        ...
