"""Evaluate Pass@K of a model or a run, with intervals; all samples are written to disk."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from entropy_rl.cli.main import run_verb
from entropy_rl.config.checks import require
from entropy_rl.config.common import EpisodesConfig, TaskConfig
from entropy_rl.config.evaluate import EvaluateConfig
from entropy_rl.config.files import check_creatable
from entropy_rl.distributed import multihost as hosts
from entropy_rl.distributed.sharding import make_mesh
from entropy_rl.escape import echo
from entropy_rl.evaluation import (
    Evaluation,
    OnProgress,
    evaluate_into,
    evaluation_problems,
    evaluation_prompts,
)
from entropy_rl.evaluation.samples import check_free, samples_file
from entropy_rl.report import curve_of, evaluation_table, write_pass_at_k
from entropy_rl.rollout.stop_strings import check_stop_strings
from entropy_rl.runs.compile_log import compile_log
from entropy_rl.runs.directory import (
    CONFIG_FILE,
    FREE_OF_EVALUATION,
    check_directory,
    check_visible,
    claim_directory,
)
from entropy_rl.runs.hub import is_hub_id, pin_models
from entropy_rl.runs.identity import check_same_config, prompts_identity
from entropy_rl.runs.load_model import (
    check_length,
    check_models,
    find_model,
    is_run,
    load_model,
    read_model_files,
)
from entropy_rl.runs.logging import Progress
from entropy_rl.runs.preemption import Interrupted, catch_signals
from entropy_rl.runs.provenance import record_start
from entropy_rl.runs.stored import read_recorded_config
from entropy_rl.tasks import closing, load_task

# How the directory of an evaluation is checked.
_OURS: Mapping[str, Any] = MappingProxyType(
    {
        "field": "output",
        "free": (*FREE_OF_EVALUATION, "output", "shard", "shards"),
    }
)

_EVALUATIONS = itertools.count()  # those of a process of several, which are told apart


def evaluate_model(config: EvaluateConfig) -> Evaluation | None:
    """Evaluate a model and write the samples and the result as JSON, CSV and a curve.

    Existing samples are kept, so that the same command resumes. Several processes may share the
    problems, each with its own `config.shard`; the last one writes the result. Those of
    jax.distributed wait for each other, and a signal to one stops all.

    Returns:
      The result; None while other processes have samples to add.

    Raises:
      ValueError: If something in the config cannot work; before any sampling.
      Interrupted: If it was asked to stop; every finished sample is on disk.
    """
    directory = Path(config.output)
    check_same_config(config, but="shard")
    config = _with_task(pin_models(config, directory))
    check_creatable(directory)
    check_directory(directory, config, **_OURS)
    mesh = make_mesh(config.mesh, jax.local_devices())
    check_visible(directory, "output")
    task = load_task(config.task.name, config.task.args, config.task.episodes)
    evaluation_problems(config.evaluation, task)
    files = read_model_files(config.model)
    check_stop_strings(files.tokenizer, config.evaluation.stop, "evaluation.stop")
    prompts = evaluation_prompts(config.evaluation, task, files.tokenizer, config.max_prompt_tokens)
    check_length(files, prompts.length + config.evaluation.max_new_tokens)
    shard = (
        hosts.index() if config.shard is None else config.shard,
        hosts.count() if config.shards is None else config.shards,
    )
    total = len(prompts.shard(*shard)) * config.evaluation.samples
    require(
        config.shards is None or config.shards <= len(prompts),
        "shards",
        config.shards,
        f"at most {len(prompts)}, the number of problems",
    )
    if hosts.count() > 1:
        hosts.check_same(prompts_identity(prompts.problems, prompts.encoded, files.tokenizer))
    check_free(samples_file(directory, *shard))
    model = load_model(config.model, mesh, files=files)
    # All processes write the same config.
    claim_directory(directory, dataclasses.replace(config, shard=None, shards=None), **_OURS)
    record_start(directory)

    together = hosts.count() > 1 and config.shards is None
    topic = f"end of evaluation {next(_EVALUATIONS)}"
    start, begun, made = time.perf_counter(), None, 0
    with (
        closing(task),
        catch_signals() as stop,
        compile_log() as compiled,
        Progress("samples", total, every=max(1, total // 20)) as bar,
    ):

        def act() -> None:
            stop.act(
                f"stopped after {made} of {total} samples; the same command goes on from there"
            )

        def on_progress(done: int, total: int, waited: float) -> None:
            nonlocal begun, made
            made, begun = done, done if begun is None else begun
            seconds = time.perf_counter() - start
            speed = f"{(done - begun) / seconds:.1f}/s"
            compiled.report(bar.say)
            bar.show(done, f"{speed}, waiting for verdicts {waited / seconds:.1%} of the time")
            if together and not stop:
                stop.signal_number = max(hosts.told(topic).values(), default=0) or None
            act()

        def draw(on_progress: OnProgress) -> Evaluation | None:
            return evaluate_into(
                directory,
                model,
                model.params,
                task,
                prompts,
                config.evaluation,
                seed=config.seed,
                decoding=config.decoding,
                shard=shard,
                on_progress=on_progress,
            )

        if not together:
            result = draw(on_progress)
        else:
            with contextlib.suppress(Interrupted):
                draw(on_progress)
            number = hosts.signal_of_all(topic, lambda: stop.signal_number or 0)
            stop.signal_number = number or None
            act()
            result = draw(lambda done, total, waited: None)  # with the samples of all
            require(result is not None, "output", config.output, "visible to all processes")
    if result is not None:
        write_pass_at_k(directory, {config.model.path: curve_of(result)})
    return result


def _with_task(config: EvaluateConfig) -> EvaluateConfig:
    """The config with the task of the run that it evaluates, where it names none.

    Raises:
      ValueError: If the model is no run.
    """
    if config.task is not None:
        return config
    path = config.model.path
    found = not is_hub_id(path) and is_run(find_model(path))
    require(found, "task", None, f"set, as {path} is no training run")
    recorded = read_recorded_config(find_model(path) / CONFIG_FILE)
    require(recorded.get("task") is not None, "task", None, f"set, as the run {path} has none")
    of_task = dict(recorded["task"])
    of_task.pop("train_split", None)  # refused as a setting, as an evaluation does not use it
    if of_task.get("episodes") is not None:
        of_task["episodes"] = EpisodesConfig(**of_task["episodes"])
    return dataclasses.replace(config, task=TaskConfig(**of_task))


def check_config(config: EvaluateConfig) -> None:
    """Check what needs no device and no weights: the directory, the task's problems, the model.

    Raises:
      ValueError: If something in the config cannot work.
    """
    config = _with_task(pin_models(config, Path(config.output), ask=False))
    check_creatable(Path(config.output))
    check_directory(Path(config.output), config, **_OURS)
    task = load_task(config.task.name, config.task.args, config.task.episodes)
    with closing(task):
        evaluation_problems(config.evaluation, task)
    check_models(config, fetch=False)


def main(config: EvaluateConfig) -> None:
    """The verb `evaluate` of the command line."""
    result = evaluate_model(config)
    if result is None:
        echo(f"done; {config.output} lacks samples of other shards: the last one writes the result")
        return
    if not hosts.is_first():
        return
    echo(evaluation_table({config.model.path: result}))
    echo(f"\neverything is in {config.output}")


if __name__ == "__main__":
    sys.exit(run_verb("evaluate", sys.argv[1:]))
