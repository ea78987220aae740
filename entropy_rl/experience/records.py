"""Scored completions as plain rows, for samples.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entropy_rl.experience.scoring import Scores
from entropy_rl.tasks.task import Problem
from entropy_rl.types import FinishReason, Rollout

Row = dict[str, Any]


def completion_rows(
    problems: Sequence[Problem], sample_index: Sequence[int], rollout: Rollout, scores: Scores
) -> list[Row]:
    """The first len(problems) rows as plain values, for a JSONL file."""
    rows = []
    for b, problem in enumerate(problems):
        mask = rollout.completion_mask[b]
        rows.append(
            {
                "problem": problem.id,
                "sample": sample_index[b],
                "prompt": problem.prompt,
                "right_answer": problem.answer,
                "completion": scores.texts[b],
                "answer": scores.answers[b],
                "verdict": scores.verdicts[b].value,
                "finish_reason": FinishReason(int(rollout.finish_reason[b])).name.lower(),
                "length": int(mask.sum()),
                "tokens": rollout.completion_ids[b][mask].tolist(),
                "log_probs": [round(float(x), 6) for x in rollout.log_probs[b][mask]],
                "entropy": [round(float(x), 6) for x in rollout.entropy[b][mask]],
            }
        )
    return rows
