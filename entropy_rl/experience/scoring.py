"""From sampled tokens to texts, verdicts and rewards: the host's half of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from entropy_rl.config.train import RewardConfig
from entropy_rl.tasks.task import AnsweringTask, JudgeError, ProbedTask, Problem, Task, Verdict
from entropy_rl.types import Rollout


@dataclasses.dataclass(frozen=True)
class Scores:
    """The judgement of a rollout's rows, on the host."""

    texts: list[str]
    verdicts: list[Verdict]
    answers: list[str | None]  # final answers; None throughout for a task that has none
    probe: dict[
        str, tuple[float, float]
    ]  # sums of the task's skill measures; empty without a probe

    @property
    def correct(self) -> np.ndarray:
        """bool[B]."""
        return np.array([verdict is Verdict.CORRECT for verdict in self.verdicts], bool)

    @property
    def has_reward(self) -> np.ndarray:
        """bool[B], False where the verifier failed: no judgement, no reward."""
        return np.array([verdict.is_judgement for verdict in self.verdicts], bool)

    def rewards(self, config: RewardConfig) -> np.ndarray:
        """f32[B]; the value of a row that has no reward is never looked at."""
        return np.where(self.correct, config.correct, config.wrong).astype(np.float32)


def score(task: Task, tokenizer, problems: Sequence[Problem], rollout: Rollout) -> Scores:
    """Decodes and judges completions.

    Args:
      task: The judge.
      tokenizer: Decodes without special tokens.
      problems: The problem of each row (B of them).
      rollout: Host copies of the arrays.

    Returns:
      The scores, row by row.

    Raises:
      JudgeError: If the task does not return one verdict per completion.
    """
    texts = decode_completions(tokenizer, rollout)
    verdicts = task.judge(problems, texts)
    if len(verdicts) != len(texts) or not all(isinstance(v, Verdict) for v in verdicts):
        raise JudgeError(
            f"{type(task).__name__}.judge returned {len(verdicts)} values for {len(texts)} "
            "completions; "
            "it must return one Verdict for each"
        )
    probe = task.probe(problems, texts) if isinstance(task, ProbedTask) else {}
    return Scores(texts, verdicts, _answers(task, texts), probe)


def judged_before(task: Task, tokenizer, rollout: Rollout, verdicts: Sequence[Verdict]) -> Scores:
    """The scores of completions whose verdicts are known, without skill measures."""
    texts = decode_completions(tokenizer, rollout)
    return Scores(texts, list(verdicts), _answers(task, texts), {})


def _answers(task: Task, texts: list[str]) -> list[str | None]:
    return task.final_answers(texts) if isinstance(task, AnsweringTask) else [None] * len(texts)


def decode_completions(tokenizer, rollout: Rollout) -> list[str]:
    """The text of each row, special tokens left out."""
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return tokenizer.batch_decode(
        [ids[mask].tolist() for ids, mask in rows], skip_special_tokens=True
    )


def probe_shares(probe: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Skill measures as shares, under names for metrics; one that nothing was counted for is left
    out.
    """
    return {f"skill/{name}": part / whole for name, (part, whole) in probe.items() if whole}


def add_probes(
    one: dict[str, tuple[float, float]], other: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Pools skill measures: numerators and denominators are added."""
    zero = (0.0, 0.0)
    names = [*one, *(name for name in other if name not in one)]
    return {
        n: tuple(a + b for a, b in zip(one.get(n, zero), other.get(n, zero), strict=True))
        for n in names
    }
