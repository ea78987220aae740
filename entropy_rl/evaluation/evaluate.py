"""Evaluations: in memory, or into a directory, where one that was killed goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from entropy_rl.config.rollout import DecodingConfig, EvaluationConfig
from entropy_rl.evaluation.fingerprint import check_origin, exclusive
from entropy_rl.evaluation.result import Evaluation, summarize
from entropy_rl.evaluation.samples import cut_broken_line, read_samples, samples_file, write_result
from entropy_rl.evaluation.sampling import draw_samples
from entropy_rl.experience.prompts import Prompts
from entropy_rl.runs.jsonl import write_jsonl
from entropy_rl.runs.load_model import Model
from entropy_rl.tasks.task import Task
from entropy_rl.types import Params

# (samples of this process that are on disk, of how many, seconds that the device has waited for
# verdicts)
OnProgress = Callable[[int, int, float], None]


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
            f"evaluation.problems: must be at most {len(problems)}, the size of the split "
            f"{config.split!r}, got {config.problems}"
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
) -> Evaluation:
    """Samples and judges every problem, in memory.

    Args:
      model: Policy and tokenizer.
      params: The parameters to evaluate.
      task: The judge.
      prompts: The problems, from `evaluation_prompts`.
      config: The `evaluation` section.
      seed: With a problem's id and the number of the sample it fixes every sample.

    Returns:
      The result.

    Raises:
      JudgeError: If no sample at all was judged.
    """
    calls = draw_samples(model, params, task, prompts, config, seed=seed)
    return summarize((row for drawn in calls for row in drawn.rows), task, prompts, config.samples)


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
    """Samples and judges what is not yet on disk; whoever adds the last sample writes
    evaluation.json.

    Args:
      directory: Where samples.jsonl and evaluation.json go. What it holds already must come from
        the same model, prompts, config and seed.
      model: Policy and tokenizer.
      params: The parameters to evaluate.
      task: The judge.
      prompts: All problems, from `evaluation_prompts`.
      config: The `evaluation` section.
      seed: With a problem's id and the number of the sample it fixes every sample.
      decoding: How the samples of a call share the device.
      shard: The part of the problems that this process samples, as (index, count).
      on_progress: Called at the start, while samples are drawn, and after each batch is on disk;
        what it raises ends the evaluation, and the next call goes on from there.

    Returns:
      The result; None while other processes have samples to add.

    Raises:
      ValueError: If the directory holds samples of other weights or problems, or one twice, or
        another process is writing this part.
      JudgeError: If no sample at all was judged.
    """
    file = samples_file(directory, *shard)
    own = prompts.shard(*shard)
    with exclusive(file):
        check_origin(directory, params, prompts.problems)
        cut_broken_line(file)
        done = _samples_on_disk(directory, prompts, config.samples)
        ids = {problem.id for problem in own.problems}
        count, total = sum(problem in ids for problem, _ in done), len(own) * config.samples
        progress = [count, total, 0.0]
        on_progress(*progress)
        for drawn in draw_samples(
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
            write_jsonl(file, drawn.rows)
            progress[0] += len(drawn.rows)
            progress[2] += drawn.waited
            on_progress(*progress)
    if len(_samples_on_disk(directory, prompts, config.samples)) < len(prompts) * config.samples:
        return None
    result = summarize(read_samples(directory), task, prompts, config.samples)
    write_result(directory, result)
    return result


def _samples_on_disk(directory: Path, prompts: Prompts, samples: int) -> set[tuple[int, int]]:
    ids, found = {problem.id for problem in prompts.problems}, set()
    for row in read_samples(directory):
        sample = (row["problem"], row["sample"])
        if sample in found:
            raise ValueError(
                f"{directory}: sample {sample[1]} of problem {sample[0]} is there twice, as "
                "processes with "
                "different numbers of shards have written at once; allowed: one of these samples "
                "files"
            )
        if sample[0] not in ids or not 0 <= sample[1] < samples:
            raise ValueError(
                f"{directory}: sample {sample[1]} of problem {sample[0]} is of other settings"
            )
        found.add(sample)
    return found
