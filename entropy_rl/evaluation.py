"""Pass@K and its companions: sampling every problem n times, judging, and the statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from entropy_rl.config import EvaluationConfig
from entropy_rl.interrupt import StopRequest
from entropy_rl.loading import Model
from entropy_rl.metrics import Progress
from entropy_rl.passk import bootstrap_interval, pass_at_k_curve
from entropy_rl.prompts import Prompts
from entropy_rl.rollout import make_generate
from entropy_rl.scoring import Scores, add_probes, probe_shares, score
from entropy_rl.tasks.task import Problem, Task, Verdict
from entropy_rl.types import FinishReason, Params, Rollout

OnRows = Callable[[int, int, list[dict[str, Any]]], None]

# Evaluations must not share the noise of training, whose keys are fold_in(key(seed), step).
_STREAM = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. Intervals are 95% bootstrap intervals over problems.

    Attributes:
      problems: Problems that were sampled.
      left_out: Problems with too long a prompt.
      samples: Samples per problem (n).
      pass_at_k: K -> (estimate, low, high), unbiased; over the problems with K or more judged samples.
      pass_at_k_problems: K -> how many these are.
      unjudged: Problems without any judged sample: every check timed out or crashed.
      mean_length: (estimate, low, high), tokens of a completion.
      mean_entropy: (estimate, low, high), nats per token, of the tempered distribution.
      truncated: Share of completions cut off at the limit.
      verdicts: Verdict -> share.
      skill: The task's own measures.
    """

    problems: int
    left_out: int
    samples: int
    pass_at_k: dict[int, tuple[float, float, float]]
    pass_at_k_problems: dict[int, int]
    unjudged: int
    mean_length: tuple[float, float, float]
    mean_entropy: tuple[float, float, float]
    truncated: float
    verdicts: dict[str, float]
    skill: dict[str, float]

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Evaluation:
        """From what JSON held: its keys are texts, and its tuples lists."""

        def restored(value: Any) -> Any:
            return tuple(value) if isinstance(value, list) else value

        fields = {name: restored(value) for name, value in plain.items()}
        for name in ("pass_at_k", "pass_at_k_problems"):
            fields[name] = {int(k): restored(value) for k, value in fields[name].items()}
        return cls(**fields)


def evaluation_prompts(
    config: EvaluationConfig, task: Task, tokenizer: Any, max_prompt_tokens: int
) -> Prompts:
    """The problems of an evaluation, encoded.

    Args:
      config: The `evaluation` section.
      task: Where they come from.
      tokenizer: Encodes the prompts.
      max_prompt_tokens: Longer prompts are left out, and counted.

    Raises:
      ValueError: If there is no such split, it has too few problems, or no prompt is short enough.
    """
    problems = list(task.problems(config.split))
    if config.problems is not None and config.problems > len(problems):
        raise ValueError(
            f"evaluation.problems: {config.problems} is not allowed; "
            f"the split {config.split!r} has {len(problems)} problems"
        )
    return Prompts(problems[: config.problems], tokenizer, max_prompt_tokens)


def evaluate(
    model: Model,
    params: Params,
    task: Task,
    prompts: Prompts,
    config: EvaluationConfig,
    *,
    seed: int,
    on_rows: OnRows | None = None,
) -> Evaluation:
    """Samples and judges every problem.

    Args:
      model: Policy and tokenizer.
      params: The parameters to evaluate.
      task: The judge.
      prompts: The problems, from `evaluation_prompts`.
      config: The `evaluation` section.
      seed: With a problem's id and the number of the sample it fixes every sample.
      on_rows: Called after each batch with (rows done, rows in all, the rows as plain values).

    Returns:
      The result.

    Raises:
      RuntimeError: If no sample at all was judged.
    """
    tally = _Tally()
    total = len(prompts) * config.samples
    for problems_of_rows, sample_index, rollout in _rollouts(model, params, prompts, config, seed):
        scores = score(task, model.tokenizer, problems_of_rows, rollout)
        tally.add(problems_of_rows, rollout, scores)
        if on_rows is not None:
            on_rows(tally.rows, total, completion_rows(problems_of_rows, sample_index, rollout, scores))
    return tally.result(config.samples, prompts.left_out)


def watch(progress: Progress, stop: StopRequest) -> OnRows:
    """An `on_rows` that shows how far an evaluation is, and ends it when the run was asked to stop."""

    def on_rows(done: int, total: int, _: list[dict[str, Any]]) -> None:
        progress.note(f"evaluation: {done}/{total} samples")
        stop.act("stopped during an evaluation; the same command begins it anew")

    return on_rows


def _rollouts(
    model: Model, params: Params, prompts: Prompts, config: EvaluationConfig, seed: int
) -> Iterator[tuple[list[Problem], list[int], Rollout]]:
    """All samples of all problems, at most `rows_per_call` at a time."""
    group = min(config.samples, config.rows_per_call)
    prompts_per_call = min(len(prompts), max(1, config.rows_per_call // group))
    generate = make_generate(
        model.policy,
        group_size=group,
        max_new_tokens=config.max_new_tokens,
        eos_ids=model.eos_ids,
        pad_id=model.pad_id,
        temperature=config.temperature,
        top_p=config.top_p,
    )
    key = jax.random.fold_in(jax.random.key(seed), _STREAM)
    for first in range(0, len(prompts), prompts_per_call):
        # The last batch is moved back so that it is full; what was done before is dropped.
        start = min(first, len(prompts) - prompts_per_call)
        batch = prompts.batch(start, prompts_per_call)
        for sample in range(0, config.samples, group):
            rollout = generate(params, batch.ids, batch.mask, batch.index, key, sample)
            rollout = jax.device_get(rollout)
            row = np.arange(prompts_per_call * group)
            kept = row[(row // group + start >= first) & (row % group + sample < config.samples)]
            # A prompt of its own for every row that is left: their number need not be whole groups.
            rows = jax.tree.map(
                lambda x, kept=kept, size=row.size: x[kept if len(x) == size else kept // group], rollout
            )
            yield [batch.problems[b // group] for b in kept], [int(b % group + sample) for b in kept], rows


def completion_rows(
    problems: Sequence[Problem], sample_index: Sequence[int], rollout: Rollout, scores: Scores
) -> list[dict[str, Any]]:
    """The first len(problems) rows as plain values, for a JSONL file."""
    rows = []
    for b, problem in enumerate(problems):
        mask = rollout.completion_mask[b]
        rows.append(
            {
                "problem": problem.id,
                "sample": sample_index[b],
                "prompt": problem.prompt,
                "completion": scores.texts[b],
                "verdict": scores.verdicts[b].value,
                "finish_reason": FinishReason(int(rollout.finish_reason[b])).name.lower(),
                "tokens": rollout.completion_ids[b][mask].tolist(),
                "log_probs": [round(float(x), 6) for x in rollout.log_probs[b][mask]],
                "entropy": [round(float(x), 6) for x in rollout.entropy[b][mask]],
            }
        )
    return rows


class _Tally:
    """Counts per problem, filled batch by batch."""

    def __init__(self):
        self.rows = 0
        self._counts: dict[int, np.ndarray] = {}  # judged, correct, rows, tokens, entropy
        self._verdicts = dict.fromkeys(Verdict, 0)
        self._truncated = 0
        self._probe: dict[str, tuple[float, float]] = {}

    def add(self, problems: list[Problem], rollout: Rollout, scores: Scores) -> None:
        tokens = rollout.completion_mask.sum(-1)
        entropy = rollout.entropy.astype(np.float64).sum(-1)
        for b, problem in enumerate(problems):
            row = np.array([scores.valid[b], scores.correct[b], 1, tokens[b], entropy[b]], np.float64)
            self._counts[problem.id] = self._counts.get(problem.id, 0) + row
            self._verdicts[scores.verdicts[b]] += 1
        self._truncated += int((rollout.finish_reason == FinishReason.LENGTH).sum())
        self._probe = add_probes(self._probe, scores.probe)
        self.rows += len(problems)

    def result(self, samples: int, left_out: int) -> Evaluation:
        judged, correct, rows, tokens, entropy = np.stack(list(self._counts.values())).T
        judged, correct = judged.astype(int), correct.astype(int)
        if judged.max() == 0:
            raise RuntimeError(f"none of {self.rows} samples was judged: every check timed out or crashed")
        pass_at_k = {}
        # For each K the problems that have so many judged samples: one lost check costs one problem.
        for k in (2**i for i in range(int(judged.max()).bit_length())):
            enough = judged >= k
            curve = pass_at_k_curve(judged[enough], correct[enough], [k])
            pass_at_k[k] = (float(curve.estimate[0]), float(curve.low[0]), float(curve.high[0]))
        return Evaluation(
            problems=len(rows),
            left_out=left_out,
            samples=samples,
            pass_at_k=pass_at_k,
            pass_at_k_problems={k: int((judged >= k).sum()) for k in pass_at_k},
            unjudged=int((judged == 0).sum()),
            mean_length=_interval(tokens / rows),
            mean_entropy=_interval(entropy / tokens),
            truncated=self._truncated / self.rows,
            verdicts={v.value: count / self.rows for v, count in self._verdicts.items()},
            skill={n.removeprefix("skill/"): v for n, v in probe_shares(self._probe).items()},
        )


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    return tuple(float(x) for x in bootstrap_interval(values))
