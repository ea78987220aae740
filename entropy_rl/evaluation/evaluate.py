"""Evaluate a policy into a directory, where an interrupted evaluation resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rl.config.rollout import DecodingConfig, EvaluationConfig
from entropy_rl.evaluation.origin import check_origin
from entropy_rl.evaluation.result import Evaluation, summarize
from entropy_rl.evaluation.samples import (
    exclusive,
    read_samples,
    read_samples_once,
    samples_file,
    write_result,
)
from entropy_rl.evaluation.sampling import draw_samples
from entropy_rl.experience.prompts import Prompts
from entropy_rl.experience.records import Row
from entropy_rl.runs.jsonl import cut_broken_line, write_jsonl
from entropy_rl.runs.load_model import Model, count_unused
from entropy_rl.tasks import problems_of
from entropy_rl.tasks.task import JudgeError, Problem, Task, Verdict
from entropy_rl.types import Params

# (samples of this process on disk, their total, seconds that the device waited for verdicts)
OnProgress = Callable[[int, int, float], None]


def evaluation_prompts(
    config: EvaluationConfig, task: Task, tokenizer: Any, max_prompt_tokens: int
) -> Prompts:
    """Encode the problems of an evaluation.

    Args:
      config: The `evaluation` section.
      task: The task with the problems.
      tokenizer: Encodes the prompts.
      max_prompt_tokens: Longer prompts are left out and counted.

    Raises:
      ValueError: The split does not exist, has too few problems, or all prompts are too long.
    """
    problems = evaluation_problems(config, task)
    return Prompts(problems, tokenizer, max_prompt_tokens)


def evaluation_problems(config: EvaluationConfig, task: Task) -> Sequence[Problem]:
    """Return the problems of an evaluation.

    Raises:
      ValueError: The split does not exist, or has too few problems.
    """
    problems = problems_of(task, config.split, "evaluation.split")
    if config.problems is not None and config.problems > len(problems):
        raise ValueError(
            f"evaluation.problems: must be at most {len(problems)}, the size of the split "
            f"{config.split!r}, got {config.problems}"
        )
    return problems[: config.problems]


def evaluate_into(
    directory: Path,
    model: Model,
    params: Params,
    task: Task,
    prompts: Prompts,
    config: EvaluationConfig,
    *,
    seed: int,
    decoding: DecodingConfig = DecodingConfig(),
    shard: tuple[int, int] = (0, 1),
    on_progress: OnProgress = lambda done, total, waited: None,
) -> Evaluation | None:
    """Sample and judge what is not yet on disk; the process of the last sample writes the result.

    Args:
      directory: Where samples.jsonl and evaluation.json go. Existing samples must come from the
        same model, prompts, config and seed.
      model: Policy and tokenizer.
      params: The parameters to evaluate.
      task: Judges the samples.
      prompts: All problems, from `evaluation_prompts`.
      config: The `evaluation` section.
      seed: Every sample is a function of the seed, the problem id and the sample number.
      decoding: Batching of the decode loop.
      shard: (index, count) of the shard of the problems that this process samples.
      on_progress: Called at the start, during sampling, and after each batch is on disk. An
        exception in it ends the evaluation; the next call resumes.

    Returns:
      The result; None while other processes have samples to add.

    Raises:
      ValueError: The directory holds samples of another model or other problems, or duplicates, or
        another process is writing this shard.
      JudgeError: No sample was judged, or the check crashed for all of the first ones, which are
        not kept then.
    """
    file = samples_file(directory, *shard)
    own = prompts.shard(*shard)
    with exclusive(file):
        check_origin(directory, model, params, prompts)
        cut_broken_line(file)
        done = _samples_on_disk(directory, prompts, config.samples)
        if done and model.unused:  # earlier versions sampled them
            ids = (np.array(row["tokens"], np.int32) for row in read_samples(directory))
            recorded = ((tokens, np.ones(len(tokens), bool)) for tokens in ids)
            count_unused(model, recorded, str(directory))
        ids = {problem.id for problem in own.problems}
        count, total = sum(problem in ids for problem, _ in done), len(own) * config.samples
        progress = [count, total, 0.0]
        works = any(done.values())  # the check, for a sample at least
        held: list[Row] = []  # not written before it does
        on_progress(*progress)
        for batch in draw_samples(
            model,
            params,
            task,
            own,
            config,
            seed=seed,
            decoding=decoding,
            done=done,
            on_chunk=lambda _: on_progress(*progress),
        ):
            held += batch.rows
            works = works or not _only_crashes(held)
            if works:
                write_jsonl(file, held)
                held = []
            progress[0] += len(batch.rows)
            progress[2] += batch.waited
            on_progress(*progress)
        if held:
            write_jsonl(file, held)
    # Alone, this process has written all that was missing. Large files take minutes to read.
    if shard[1] > 1:
        done = _samples_on_disk(directory, prompts, config.samples)
        if len(done) < len(prompts) * config.samples:
            return None
    try:
        result = summarize(read_samples_once(directory), task, prompts, config.samples)
    except JudgeError as error:
        raise JudgeError(
            f"{directory}: {error}; delete its samples to evaluate again with a check that works"
        ) from None
    write_result(directory, result)
    return result


def _only_crashes(rows: list[Row]) -> bool:
    """Whether the check crashed for all of the first samples.

    Raises:
      JudgeError: If these are of several problems; a single one may be at fault itself.
    """
    if any(Verdict(row["verdict"]) is not Verdict.CRASH for row in rows):
        return False
    if len({row["problem"] for row in rows}) > 1:
        raise JudgeError(
            f"none of the first {len(rows)} samples was judged: every check crashed; they are not "
            "kept"
        )
    return True


def _samples_on_disk(
    directory: Path, prompts: Prompts, samples: int
) -> dict[tuple[int, int], bool]:
    """Return (problem id, sample number) -> whether the check did not crash for it."""
    ids, found = {problem.id for problem in prompts.problems}, {}
    for row in read_samples_once(directory):
        sample = (row["problem"], row["sample"])
        if sample[0] not in ids or not 0 <= sample[1] < samples:
            raise ValueError(
                f"{directory}: must hold samples of these settings, got sample {sample[1]} of "
                f"problem {sample[0]}"
            )
        found[sample] = Verdict(row["verdict"]) is not Verdict.CRASH
    return found
