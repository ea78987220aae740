"""Scoring on the host: from sampled tokens to texts, verdicts and rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from entropy_rl.config.train import RewardConfig
from entropy_rl.tasks.task import AnsweringTask, JudgeError, ProbedTask, Problem, Task, Verdict
from entropy_rl.types import Rollout

VERDICTS = tuple(Verdict)  # an array of verdicts holds indices into it


@dataclasses.dataclass(frozen=True)
class Scores:
    """Texts and verdicts of the rows of a rollout, on the host.

    Attributes:
      texts: The completions without special tokens.
      verdicts: The verdict of each.
      answers: The final answers; all None if the task is not an `AnsweringTask`.
      probe: The task's skill measures by name as (sum, count); empty unless it is a `ProbedTask`.
    """

    texts: list[str]
    verdicts: list[Verdict]
    answers: list[str | None]
    probe: dict[str, tuple[float, float]]

    @property
    def correct(self) -> np.ndarray:
        """bool[B]."""
        return np.array([verdict is Verdict.CORRECT for verdict in self.verdicts], bool)

    @property
    def has_reward(self) -> np.ndarray:
        """bool[B], False where the verifier failed."""
        return np.array([verdict.is_judgement for verdict in self.verdicts], bool)

    @property
    def codes(self) -> np.ndarray:
        """int32[B], the indices of the verdicts in `VERDICTS`."""
        return np.array([VERDICTS.index(verdict) for verdict in self.verdicts], np.int32)

    def rewards(self, config: RewardConfig) -> np.ndarray:
        """f32[B]; finite but meaningless where `has_reward` is False."""
        return np.where(self.correct, config.correct, config.wrong).astype(np.float32)


def score(task: Task, tokenizer, problems: Sequence[Problem], rollout: Rollout) -> Scores:
    """Decode and judge completions.

    Args:
      task: The task whose `judge` gives the verdicts.
      tokenizer: Decodes without special tokens.
      problems: The problem of each of the B rows.
      rollout: Host copies of the arrays.

    Returns:
      The scores of the rows.

    Raises:
      JudgeError: If the task does not return one verdict per completion.
    """
    texts = decode_completions(tokenizer, rollout)
    verdicts = task.judge(problems, texts)
    if len(verdicts) != len(texts) or not all(isinstance(v, Verdict) for v in verdicts):
        raise JudgeError(
            f"{type(task).__name__}.judge returned {len(verdicts)} values for {len(texts)} "
            "completions; it must return one Verdict for each"
        )
    probe = task.probe(problems, texts) if isinstance(task, ProbedTask) else {}
    return Scores(texts, verdicts, _answers(task, texts), probe)


def judged_before(task: Task, tokenizer, rollout: Rollout, verdicts: Sequence[Verdict]) -> Scores:
    """Scores of completions whose verdicts are known; without skill measures."""
    texts = decode_completions(tokenizer, rollout)
    return Scores(texts, list(verdicts), _answers(task, texts), {})


def _answers(task: Task, texts: list[str]) -> list[str | None]:
    return task.final_answers(texts) if isinstance(task, AnsweringTask) else [None] * len(texts)


def decode_completions(tokenizer, rollout: Rollout) -> list[str]:
    """Decode the completion of each row, without special tokens."""
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return tokenizer.batch_decode(
        [ids[mask].tolist() for ids, mask in rows], skip_special_tokens=True
    )


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
