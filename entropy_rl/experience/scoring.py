"""Scoring on the host: from sampled tokens to texts, verdicts and rewards."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_rl.config.checks import require, shown
from entropy_rl.config.rewards import RewardConfig
from entropy_rl.config.values import plain_scalar
from entropy_rl.tasks.judging import as_judgements, correct_at, is_finite, listed
from entropy_rl.tasks.task import (
    AnsweringTask,
    JudgeError,
    Judgement,
    ProbedTask,
    Problem,
    Task,
    Verdict,
)
from entropy_rl.tasks.user_errors import method_of, naming_method
from entropy_rl.types import Rollout

VERDICTS = tuple(Verdict)  # an array of verdicts holds indices into it
_ROWS_AT_ONCE = 64  # which are decoded; lists take ten times the memory of arrays


@dataclasses.dataclass(frozen=True)
class Scores:
    """Texts and judgements of the rows of a rollout, on the host.

    Attributes:
      texts: The completions without special tokens.
      judgements: The judgement of each.
      answers: The final answers; all None if the task is not an `AnsweringTask`.
      probe: The task's skill measures by name as (sum, count); empty unless it is a `ProbedTask`.
      observations: What environments answered in each row, as (sampled tokens before it, text with
        the tokens of the chat template); empty for completions of a single turn.
    """

    texts: list[str]
    judgements: list[Judgement]
    answers: list[str | None]
    probe: dict[str, tuple[float, float]]
    observations: list[list[tuple[int, str]]] = dataclasses.field(default_factory=list)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict of each row."""
        return [judgement.verdict for judgement in self.judgements]

    @property
    def correct(self) -> np.ndarray:
        """bool[B]."""
        return np.array([verdict is Verdict.CORRECT for verdict in self.verdicts], bool)

    @property
    def has_reward(self) -> np.ndarray:
        """bool[B], False where the verifier failed or did not judge."""
        return np.array([verdict.is_judgement for verdict in self.verdicts], bool)

    @property
    def codes(self) -> np.ndarray:
        """int32[B], the indices of the verdicts in `VERDICTS`."""
        return np.array([VERDICTS.index(verdict) for verdict in self.verdicts], np.int32)

    def rewards(self, config: RewardConfig) -> np.ndarray:
        """f32[B], grades or rewards of verdicts; finite but meaningless without `has_reward`."""
        right, wrong = config.correct, config.wrong
        return np.array([one.grade(right, wrong) for one in self.judgements], np.float32)


def score(
    task: Task,
    tokenizer: Any,
    problems: Sequence[Problem],
    rollout: Rollout,
    judgements: Sequence[Judgement] | None = None,
) -> Scores:
    """Decode and judge completions.

    Args:
      task: The task whose `judge` gives the judgements.
      tokenizer: Decodes without special tokens.
      problems: The problem of each of the B rows.
      rollout: Host copies of the arrays.
      judgements: Of the rows, if their environments have judged them.

    Returns:
      The scores of the rows.

    Raises:
      ValueError: There is not one problem for each row.
      JudgeError: If the task does not return one judgement and one final answer per completion, or
        measures that are no numbers, or its code raises a ValueError, which would be taken for one
        of the config.
    """
    rows = len(rollout.completion_ids)
    require(
        len(problems) == rows,
        "score: problems",
        f"{len(problems)} problems",
        f"one for each of {rows} rows, as of PromptBatch.rows(group_size)",
    )
    texts = decode_completions(tokenizer, rollout)
    seen: list[list[tuple[int, str]]] = []
    if judgements is None:
        with _judging(task, "judge"):
            judged, judge = task.judge(problems, texts), f"{type(task).__name__}.judge"
            judgements = as_judgements(judge, problems, judged, correct_at(task))
    else:
        seen = observations(tokenizer, rollout)
    probe = probe_of(task, problems, texts)
    return Scores(texts, list(judgements), _answers(task, texts), probe, seen)


def judged_before(task: Task, tokenizer, rollout: Rollout, verdicts: Sequence[Verdict]) -> Scores:
    """Scores of completions whose verdicts are known; without skill measures."""
    texts = decode_completions(tokenizer, rollout)
    judgements = [Judgement(v) for v in verdicts]
    seen = observations(tokenizer, rollout)
    return Scores(texts, judgements, _answers(task, texts), {}, seen)


def _answers(task: Task, texts: list[str]) -> list[str | None]:
    if not isinstance(task, AnsweringTask):
        return [None] * len(texts)
    with _judging(task, "final_answers"):
        returned = task.final_answers(texts)
        answers = listed(returned)
    wrong = answers is None or len(answers) != len(texts)
    if wrong or not all(isinstance(answer, str | None) for answer in answers):
        raise JudgeError(
            f"{method_of(task, 'final_answers')}: must return a text or None for each of "
            f"{len(texts)} completions, got {shown(answers or returned)}"
        )
    return answers


def probe_of(
    task: Task, problems: Sequence[Problem], texts: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Skill measures of completions by name; empty unless the task is a `ProbedTask`.

    Raises:
      JudgeError: They are no pairs of finite numbers by name, or the task raises a ValueError.
    """
    if not isinstance(task, ProbedTask):
        return {}
    with _judging(task, "probe"):
        returned = task.probe(problems, texts)
        pairs = returned.items() if isinstance(returned, Mapping) else [(None, ())]
        found = {name: tuple(map(plain_scalar, listed(pair) or ())) for name, pair in pairs}
    for name, pair in found.items():
        if not isinstance(name, str) or len(pair) != 2 or not all(map(is_finite, pair)):
            raise JudgeError(
                f"{method_of(task, 'probe')}: must return pairs (numerator, denominator) of finite "
                f"numbers by name, got {shown(returned)}"
            )
    return {name: (float(part), float(whole)) for name, (part, whole) in found.items()}


def _judging(task: Task, method: str) -> contextlib.AbstractContextManager[None]:
    return naming_method(task, method, caught=(ValueError,), raised=JudgeError)


def decode_completions(tokenizer, rollout: Rollout) -> list[str]:
    """Decode the completion of each row, without special tokens."""
    rows, texts = completion_ids(rollout), []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        ids = [row.tolist() for row in rows[start : start + _ROWS_AT_ONCE]]
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def observations(tokenizer: Any, rollout: Rollout) -> list[list[tuple[int, str]]]:
    """Decode the tokens between the turns of each row.

    Returns:
      For each row, (number of sampled tokens before, text with special tokens) of the observations.
    """
    found = []
    for ids, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True):
        places = np.flatnonzero(mask)
        gaps = np.flatnonzero(np.diff(places) > 1)
        found.append(
            [
                (int(gap) + 1, tokenizer.decode(ids[places[gap] + 1 : places[gap + 1]].tolist()))
                for gap in gaps
            ]
        )
    return found


def completion_ids(rollout: Rollout) -> list[np.ndarray]:
    """The token ids of the completion of each row, the token that ends it included."""
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return [ids[mask] for ids, mask in rows]


def verdict_shares(counts: Counter[Verdict]) -> dict[str, float]:
    """Fractions of the verdicts by their names; `not_judged` only where there are such."""
    listed = [v for v in VERDICTS if counts[v] or v is not Verdict.NOT_JUDGED]
    return {verdict.value: counts[verdict] / counts.total() for verdict in listed}


def probe_shares(probe: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Skill measures as metrics `skill/NAME`; one without a count is left out."""
    return {f"skill/{name}": part / whole for name, (part, whole) in probe.items() if whole}


def add_probes(
    one: dict[str, tuple[float, float]], other: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Pool skill measures by adding numerators and denominators."""
    zero = (0.0, 0.0)
    names = [*one, *(name for name in other if name not in one)]
    return {
        n: tuple(a + b for a, b in zip(one.get(n, zero), other.get(n, zero), strict=True))
        for n in names
    }
