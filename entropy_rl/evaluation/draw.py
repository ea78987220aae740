"""Sampling and judging: the device draws the next samples while the host judges those before."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import jax
import numpy as np

from entropy_rl.config import EvaluationConfig
from entropy_rl.evaluation.samples import Row, completion_rows
from entropy_rl.loading import Model
from entropy_rl.metrics import DeviceWork
from entropy_rl.prompts import PromptBatch, Prompts
from entropy_rl.rollout import make_generate
from entropy_rl.scoring import score
from entropy_rl.tasks.task import Task
from entropy_rl.types import Params, Rollout

# Evaluations must not share the noise of training, whose keys are fold_in(key(seed), step).
_STREAM = 2**31 - 1


class Drawn(NamedTuple):
    """Judged samples.

    Attributes:
      rows: Plain values, one per sample.
      waited: Seconds for which the device had nothing to do but wait for these verdicts.
    """

    rows: list[Row]
    waited: float


def draw_samples(
    model: Model,
    params: Params,
    task: Task,
    prompts: Prompts,
    config: EvaluationConfig,
    *,
    seed: int,
    done: Collection[tuple[int, int]] = frozenset(),
) -> Iterator[Drawn]:
    """Samples and judges every problem, at most `rows_per_call` samples at a time.

    Args:
      model: Policy and tokenizer.
      params: The parameters to evaluate.
      task: The judge.
      prompts: The problems.
      config: The `evaluation` section.
      seed: With a problem's id and the number of the sample it fixes every sample.
      done: Samples that are there already, as (problem id, number of the sample).

    Yields:
      The samples that are not, always in the same order.
    """
    waiting = None
    for call in _calls(model, params, prompts, config, seed, done):
        # The next samples are on their way before the host turns to those that came before.
        if waiting is not None:
            yield _judge(model, task, waiting, DeviceWork(call.rollout))
        waiting = call
    if waiting is not None:
        yield _judge(model, task, waiting, None)


class _Call(NamedTuple):
    """One call of the sampler.

    Attributes:
      batch: Its prompts.
      rollout: What it gives, still being computed.
      rows: The rows of it that are wanted.
      group: Samples per prompt.
      first_sample: The number of the first of them.
    """

    batch: PromptBatch
    rollout: Rollout
    rows: np.ndarray
    group: int
    first_sample: int


def _calls(
    model: Model,
    params: Params,
    prompts: Prompts,
    config: EvaluationConfig,
    seed: int,
    done: Collection[tuple[int, int]],
) -> Iterator[_Call]:
    group = min(config.samples, config.rows_per_call)
    count = min(len(prompts), max(1, config.rows_per_call // group))
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
    for first in range(0, len(prompts), count):
        # The last batch is moved back so that it is full; what it has twice is dropped.
        start = min(first, len(prompts) - count)
        batch = prompts.batch(start, count)
        for sample in range(0, config.samples, group):
            wanted = [
                b
                for b in range((first - start) * group, count * group)
                if b % group + sample < config.samples
                and (batch.problems[b // group].id, b % group + sample) not in done
            ]
            if wanted:
                rollout = generate(params, batch.ids, batch.mask, batch.index, key, sample)
                yield _Call(batch, rollout, np.array(wanted), group, sample)


def _judge(model: Model, task: Task, call: _Call, next_work: DeviceWork | None) -> Drawn:
    rollout, rows, group = jax.device_get(call.rollout), call.rows, call.group
    size = len(rollout.completion_ids)
    # A prompt of its own for every row that is left: their number need not be whole groups.
    rollout = jax.tree.map(lambda x: x[rows if len(x) == size else rows // group], rollout)
    problems = [call.batch.problems[b // group] for b in rows]
    numbers = [int(b % group) + call.first_sample for b in rows]
    scores = score(task, model.tokenizer, problems, rollout)
    return Drawn(
        completion_rows(problems, numbers, rollout, scores), 0.0 if next_work is None else next_work.waited()
    )
