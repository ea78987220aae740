"""Scored completions as JSON objects, for samples.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_rl.experience.experience import ScoredGroups
from entropy_rl.experience.prompts import Prompts
from entropy_rl.experience.scoring import VERDICTS, Scores, judged_before
from entropy_rl.tasks.judging import GRADED
from entropy_rl.tasks.task import Judgement, Problem, Task
from entropy_rl.types import REWARD_EXTRA, FinishReason, Rollout

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
    rows, seen = [], scores.observations or [[]] * len(problems)
    for b, problem in enumerate(problems):
        mask = rollout.completion_mask[b]
        before = [{"role": role, "content": content} for role, content in problem.messages]
        rows.append(
            {
                "problem": problem.id,
                "sample": sample_index[b],
                **({"source": problem.source} if problem.source else {}),
                **({"messages": before} if before else {}),
                "prompt": problem.prompt,
                "right_answer": problem.answer,
                "completion": scores.texts[b],
                "answer": scores.answers[b],
                "verdict": scores.judgements[b].verdict.value,
                **judgement_fields(scores.judgements[b]),
                "finish_reason": FinishReason(int(rollout.finish_reason[b])).name.lower(),
                "length": int(mask.sum()),
                "tokens": rollout.completion_ids[b][mask].tolist(),
                "log_probs": [round(float(x), 6) for x in rollout.log_probs[b][mask]],
                "entropy": [round(float(x), 6) for x in rollout.entropy[b][mask]],
                **({"observations": seen[b]} if seen[b] else {}),
            }
        )
    return rows


def judgement_fields(judgement: Judgement) -> Row:
    """The grade of a judgement as `graded`, and its `parts`; without those that it has not."""
    fields = {} if judgement.graded is None else {GRADED: judgement.graded}
    return fields | ({"parts": dict(judgement.parts)} if judgement.parts else {})


def grades_of(row: Row) -> dict[str, float]:
    """The grade of a recorded sample, as `graded`, and its parts."""
    return ({GRADED: row[GRADED]} if GRADED in row else {}) | row.get("parts", {})


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
    plain = completion_rows(
        problems, samples, first, judged_before(task, tokenizer, first, verdicts)
    )
    named = _named_rewards(groups, len(plain))
    return [row | more for row, more in zip(plain, named, strict=True)] if named else plain


def _named_rewards(groups: ScoredGroups, rows: int) -> list[Row]:
    """`rewards` of the first rows, by label; null for a reward that did not judge."""
    by_label = {
        name.removeprefix(REWARD_EXTRA): x[:rows, 0].tolist()
        for name, x in groups.rows.get("extras", {}).items()
        if name.startswith(REWARD_EXTRA)
    }
    columns = zip(*by_label.values(), strict=True)
    return [
        {
            "rewards": {
                n: None if x != x else round(x, 6) for n, x in zip(by_label, row, strict=True)
            }
        }
        for row in columns
    ]
