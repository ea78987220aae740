"""Scored completions as JSON objects, for samples.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_rl.experience.experience import ScoredGroups
from entropy_rl.experience.prompts import Prompts
from entropy_rl.experience.scoring import VERDICTS, Scores, judged_before
from entropy_rl.tasks.task import Problem, Task
from entropy_rl.types import FinishReason, Rollout

Row = dict[str, Any]


def completion_rows(
    problems: Sequence[Problem], sample_index: Sequence[int], rollout: Rollout, scores: Scores
) -> list[Row]:
    """Convert scored completions to JSON objects.

    Args:
      problems: The problems of the rows to convert, which are the first ones of the rollout.
      sample_index: The sample index of each row among those of its problem.
      rollout: Host copies.
      scores: Of its rows.
    """
    rows = []
    for b, problem in enumerate(problems):
        mask = rollout.completion_mask[b]
        before = [{"role": role, "content": content} for role, content in problem.messages]
        rows.append(
            {
                "problem": problem.id,
                "sample": sample_index[b],
                **({"messages": before} if before else {}),
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


def group_rows(
    groups: ScoredGroups, task: Task, tokenizer: Any, prompts: Prompts, rows: int
) -> list[Row]:
    """Convert the first rows of scored groups to JSON objects.

    Args:
      groups: The groups; some may have been sampled and scored by other processes, so that texts
        and answers are decoded again.
      task: Extracts the answers.
      tokenizer: Decodes without special tokens.
      prompts: Where the problems are found.
      rows: At most this many.
    """
    group, member = np.divmod(np.arange(len(groups.rows["verdicts"]))[:rows], groups.group_size)
    problems = [prompts.problem(int(index)) for index in groups.prompt_index[group]]
    samples = (groups.first_sample[group] + member).tolist()
    first = groups.rollout.replace(
        completion_ids=groups.rollout.completion_ids[:rows],
        completion_mask=groups.rollout.completion_mask[:rows],
    )
    verdicts = [VERDICTS[i] for i in groups.rows["verdicts"][:rows]]
    return completion_rows(
        problems, samples, first, judged_before(task, tokenizer, first, verdicts)
    )
