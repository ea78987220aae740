"""Sample and judge: the device generates the next batch while the host judges the last one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetDone
from typing import NamedTuple

import jax
import numpy as np

from entropy_rl.config.rollout import DecodingConfig, EvaluationConfig
from entropy_rl.distributed.sharding import Placement
from entropy_rl.experience.episodes import (
    Episodes,
    begin_episodes,
    environments_of,
    turn_tokens,
)
from entropy_rl.experience.prompts import PromptBatch, Prompts
from entropy_rl.experience.records import Row, completion_rows
from entropy_rl.experience.sampler import Sampled, check_finite, sampled_of
from entropy_rl.experience.scoring import score
from entropy_rl.rollout import DecodingProgress, GenerateFn, make_generate
from entropy_rl.rollout.stop_strings import stop_rule
from entropy_rl.runs.load_model import Model
from entropy_rl.runs.logging import DeviceWork
from entropy_rl.tasks.task import Task
from entropy_rl.types import Params

# Keeps the keys apart from those of training, fold_in(key(seed), step).
_STREAM = 2**31 - 1
_POLL_SECONDS = 0.2  # between two progress reports


class JudgedBatch(NamedTuple):
    """Judged samples of one call of the sampler.

    Attributes:
      rows: Samples as plain values.
      waited: Seconds that the device was idle, waiting for these verdicts.
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
    decoding: DecodingConfig = DecodingConfig(),
    done: Collection[tuple[int, int]] = frozenset(),
    on_chunk: Callable[[DecodingProgress], None] = lambda progress: None,
) -> Iterator[JudgedBatch]:
    """Sample and judge every problem, at most `rows_per_call` samples at a time.

    Args:
      model: Policy and tokenizer.
      params: The parameters to evaluate.
      task: Judges the samples.
      prompts: The problems.
      config: The `evaluation` section.
      seed: Every sample is a function of the seed, the problem id and the sample number.
      decoding: Batching of the decode loop.
      done: Existing samples to skip, as (problem id, sample number).
      on_chunk: Receives the progress of the current call, in this thread; an exception in it ends
        the evaluation.

    Yields:
      The missing samples, always in the same order.
    """
    generate = make_generate(
        model.sampler,
        group_size=min(config.samples, config.rows_per_call),
        max_new_tokens=config.max_new_tokens,
        eos_ids=model.eos_ids,
        pad_id=model.pad_id,
        temperature=config.temperature,
        top_p=config.top_p,
        decoding=decoding,
        stop=stop_rule(model.tokenizer, config.stop, "evaluation.stop"),
        constrain=model.placement.constrain_rows,
        shards=model.placement.local_shards,
        max_turn_tokens=turn_tokens(task, decoding, config.max_new_tokens),
    )
    key = jax.random.fold_in(jax.random.key(seed), _STREAM)

    def begin(call: _Call) -> Episodes | None:
        problems = call.batch.rows(min(config.samples, config.rows_per_call))
        return begin_episodes(task, model.tokenizer, problems, call.first_sample, key)

    params = model.to_decode(params)
    with _Sampler(generate, params, model.placement, key, on_chunk, begin) as sampler:
        waiting = None
        for call in _calls(prompts, config, done):
            # Start the next batch before judging the last one.
            rollout = sampler.begin(call)
            if waiting is not None:
                yield _judge(model, task, *waiting, DeviceWork(rollout.result))
            waiting = call, sampler.wait(rollout)
        if waiting is not None:
            yield _judge(model, task, *waiting, None)


class _Call(NamedTuple):
    """One call of the sampler.

    Attributes:
      batch: Its prompts.
      rows: Indices of the rows to keep.
      group: Samples per prompt.
      first_sample: Number of the first of these samples.
    """

    batch: PromptBatch
    rows: np.ndarray
    group: int
    first_sample: int


def _calls(
    prompts: Prompts, config: EvaluationConfig, done: Collection[tuple[int, int]]
) -> Iterator[_Call]:
    group = min(config.samples, config.rows_per_call)
    count = max(1, min(len(prompts), config.rows_per_call // group))
    for first in range(0, len(prompts), count):
        # The last batch is shifted back to be full; rows of the previous batch are dropped.
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
                yield _Call(batch, np.array(wanted), group, sample)


class _Sampler:
    """Generates in a thread, so that the host's part of decoding continues while this one judges.

    Args:
      generate: The sampler.
      params: Its parameters.
      placement: Puts the prompts on the devices.
      key: PRNG key of the evaluation.
      on_chunk: Called by `wait`, in the caller's thread.
      begin_episodes: Begins the episodes of a call; returns None without an environment.
    """

    def __init__(
        self,
        generate: GenerateFn,
        params: Params,
        placement: Placement,
        key: jax.Array,
        on_chunk: Callable[[DecodingProgress], None],
        begin_episodes: Callable[[_Call], Episodes | None] = lambda call: None,
    ):
        self._generate, self._params, self._key, self._on_chunk = generate, params, key, on_chunk
        self._begin_episodes = begin_episodes
        self._placement = placement
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._progress: DecodingProgress | None = None
        self._closed = False

    def begin(self, call: _Call) -> Future[Sampled]:
        """Start a call."""
        batch = call.batch
        prompts = self._placement.put_prompts((batch.ids, batch.mask, batch.index))
        arguments = (self._params, *prompts, self._key, call.first_sample)
        return self._thread.submit(self._draw, arguments, self._begin_episodes(call))

    def _draw(self, arguments: tuple, episodes: Episodes | None) -> Sampled:
        rollout = self._generate(
            *arguments, on_chunk=self._on_progress, **environments_of(episodes)
        )
        return sampled_of(jax.block_until_ready(rollout), episodes)

    def _on_progress(self, progress: DecodingProgress) -> None:
        if self._closed:
            raise RuntimeError("the evaluation has ended")  # ends the thread
        self._progress = progress

    def wait(self, rollout: Future[Sampled]) -> Sampled:
        """Wait for the samples; meanwhile `on_chunk` receives the progress."""
        while True:
            try:
                return rollout.result(timeout=_POLL_SECONDS)
            except NotYetDone:
                progress, self._progress = self._progress, None
                if progress is not None:
                    self._on_chunk(progress)

    def __enter__(self) -> _Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)


def _judge(
    model: Model, task: Task, call: _Call, sampled: Sampled, next_work: DeviceWork | None
) -> JudgedBatch:
    rollout, rows, group = jax.device_get(sampled.rollout), call.rows, call.group
    size = len(rollout.completion_ids)
    # Repeat the prompt for every remaining row, because groups may be incomplete.
    rollout = jax.tree.map(lambda x: x[rows if len(x) == size else rows // group], rollout)
    problems = [call.batch.problems[b // group] for b in rows]
    numbers = [int(b % group) + call.first_sample for b in rows]
    check_finite(
        f"{model.directory}",
        rollout,
        lambda row: f"sample {numbers[row]} of problem {problems[row].id}",
    )
    judgements = sampled.judgements
    if judgements is not None:
        judgements = [judgements[b] for b in rows]
    scores = score(task, model.tokenizer, problems, rollout, judgements)
    return JudgedBatch(
        completion_rows(problems, numbers, rollout, scores),
        0.0 if next_work is None else next_work.waited(),
    )
