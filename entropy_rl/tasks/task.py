"""The task interface: problems and the judging of completions.

A user's task is one file with one class.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


class Verdict(enum.Enum):
    """The outcome of judging one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"  # no answer could be read from the completion; rewarded like WRONG
    TIMEOUT = "timeout"  # the check exceeded its time limit: no judgement
    CRASH = "crash"  # the check failed: no judgement
    NOT_JUDGED = "not_judged"  # the task did not judge this completion

    @property
    def is_failure(self) -> bool:
        """True if the verifier failed; the next attempt may succeed."""
        return self in (Verdict.TIMEOUT, Verdict.CRASH)

    @property
    def is_judgement(self) -> bool:
        """False if the verifier failed or did not judge; the sample has no reward."""
        return not self.is_failure and self is not Verdict.NOT_JUDGED


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdict on one completion, with a graded reward and its parts.

    Attributes:
      verdict: Counts in Pass@K and in all measures of correctness.
      reward: The task's graded reward; None for that of the verdict.
      parts: Further numbers by name, which the reward `part` of a config can name.
      turns: The sum of the rewards of the turns of an episode, which its observations have; not
        part of `reward`, and 0 in what a task returns.
    """

    verdict: Verdict
    reward: float | None = None
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    turns: float = 0.0

    @property
    def graded(self) -> float | None:
        """`grade(1, 0)`, or None for a verdict alone."""
        return None if self.reward is None and not self.turns else self.grade(1.0, 0.0)

    def grade(self, right: float, wrong: float) -> float:
        """The graded reward, or `right` or `wrong` by the verdict, and the rewards of turns."""
        end = self.reward
        if end is None:
            end = right if self.verdict is Verdict.CORRECT else wrong
        return end + self.turns


# What a task's `judge` may return for a completion; see `entropy_rl.tasks.judging.as_judgement`.
Judged = Verdict | Judgement | bool | float | None


class JudgeError(RuntimeError):
    """A verifier that does not start or returns no verdicts; the message names it and the cause."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem. `id` is unique within its split and fixes the randomness of its samples."""

    id: int
    prompt: str  # as the model sees it, before tokenization
    answer: str  # what the verifier needs, as a text; its form is defined by the task
    chat: bool = False  # True: `prompt` is a user message, wrapped by the chat template
    # Special tokens are encoded as text in a chat prompt, and in what stands for {problem} where
    # `prompt` was made from this template.
    template: str = ""
    special_tokens: bool = False  # True: they are encoded as tokens there too
    # Of a chat prompt: the messages before the user's, as (role, content), and variables of the
    # chat template.
    messages: tuple[tuple[str, str], ...] = ()
    chat_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    source: str = ""  # the dataset of a mixture; metrics are shown for each

    def is_from(self, source: str) -> bool:
        """Whether its source is this one, or one within it, such as `games/sudoku` in `games`."""
        return self.source == source or self.source.startswith(f"{source}/")


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One training sequence for supervised fine-tuning.

    `pieces` is the completion, cut into strings that are tokenized one by one; `weights` has the
    loss weight of each piece. A weight may depend on the pieces before it, never on the piece
    itself, or the learned distribution is biased.
    """

    prompt: str
    pieces: tuple[str, ...]
    weights: tuple[float, ...]


@runtime_checkable
class Task(Protocol):
    """A task. Only `problems` and `judge` are needed for RL and evaluation.

    An optional attribute `correct_at` is the grade from which on a number returned by `judge` is a
    correct answer, 1.0 without it. Optional attributes of the class, `words` (class of words -> its
    words) and `reflective` (regular expressions of sentences), are what `analyze` and `report` look
    for in completions, where the lists for English do not fit.

    With an optional method `prompts_per_problem(split)`, which returns a number, each group of that
    many consecutive problems is one problem under several prompts, trained on in one mini-batch.
    """

    def problems(self, split: str) -> Sequence[Problem]:
        """The problems of a split in a fixed order."""
        ...

    def judge(self, problems: Sequence[Problem], completions: Sequence[str]) -> Sequence[Judged]:
        """One judgement per completion, in order; completions are without special tokens.

        A judgement is a `Verdict`, a `Judgement`, a bool, a grade in [0, 1], or None for a
        completion that is not judged.
        """
        ...


@runtime_checkable
class ProbedTask(Task, Protocol):
    """A task that also measures the correctness of single steps of a completion."""

    def probe(
        self, problems: Sequence[Problem], completions: Sequence[str]
    ) -> dict[str, tuple[float, float]]:
        """Skill metrics as name -> (numerator, denominator), so that they can be pooled."""
        ...


@runtime_checkable
class AnsweringTask(Task, Protocol):
    """A task that also extracts final answers, for majority votes and counts of answers."""

    def final_answers(self, completions: Sequence[str]) -> list[str | None]:
        """The final answer of each completion or None; equal answers have equal texts."""
        ...


@runtime_checkable
class DemonstratedTask(Task, Protocol):
    """A task with worked examples for supervised fine-tuning."""

    def demonstration(self, seed: int, index: int) -> Demonstration:
        """The worked example of an index; a pure function of its arguments."""
        ...

    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of a model trained from scratch on them."""
        ...
