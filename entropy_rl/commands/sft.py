"""Supervised training: on conversations, on preferred pairs of them, or on the demonstrations of a
task.

One step: batch of rows -> weighted cross-entropy, or a loss on pairs -> optimizer. With validation
rows, their loss is computed periodically, and may end the run. After the last step, a model of
demonstrations is evaluated, and compared with the minimum quality that the config requires (the
gate).
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from pathlib import Path

import jax
import numpy as np

from entropy_rl.config.sft import GateConfig, SFTConfig
from entropy_rl.config.values import unknown
from entropy_rl.escape import echo
from entropy_rl.evaluation import Evaluation, evaluation_prompts, read_result
from entropy_rl.experience.prompts import Prompts
from entropy_rl.experience.scoring import probe_of
from entropy_rl.report import evaluation_table
from entropy_rl.runs.directory import check_run
from entropy_rl.runs.hub import pin_models
from entropy_rl.runs.identity import data_identity
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.runs.logging import Clock
from entropy_rl.tasks import load_task
from entropy_rl.tasks.task import DemonstratedTask
from entropy_rl.trainer.chat_setup import read_rows_of, set_up_chats
from entropy_rl.trainer.check_config import warn_of_warmup
from entropy_rl.trainer.demonstration_setup import check_demonstrations, set_up_demonstrations
from entropy_rl.trainer.open_run import open_run
from entropy_rl.trainer.run import evaluation_directory, has_settings
from entropy_rl.trainer.supervised import (
    SupervisedSetup,
    count_validation,
    preference_loss,
    validations_since_lowest,
)
from entropy_rl.types import TrainState

_BEST = "best"  # in the directory of a run with `patience`


def sft(config: SFTConfig) -> TrainState:
    """Train a model, or resume the run, and return the last state.

    Args:
      config: All settings; the layout of the run directory is that of `train`.

    Raises:
      ValueError: If something in the config cannot work; before any training.
      FloatingPointError: If an update was not applied, as its gradient was not finite.
      Interrupted: If the run was asked to stop; its state is saved.
    """
    if config.data is not None:
        return _train(set_up_chats(config))
    task, prompts = _check_task(config)
    identity = {}
    if config.evaluation is not None:
        split = config.evaluation.split
        identity = data_identity({split: task.problems(split)})
    setup = set_up_demonstrations(config, task, identity)
    return _train(setup, task, prompts)


def _train(
    setup: SupervisedSetup, task: DemonstratedTask | None = None, prompts: Prompts | None = None
) -> TrainState:
    config = setup.config
    warn_of_warmup("optimizer.warmup_updates", config.optimizer.warmup_updates, config.steps)
    with open_run(config, setup.start, "sft", setup.identity) as (run, state):
        setup.keep_model_files()
        clock, tokens, norms = Clock(), 0, []
        stopped = _has_stopped(config, state)
        if stopped:
            run.progress.say(f"stopped after step {int(state.step)} already, by patience")
        for step in range(int(state.step), config.steps):
            if stopped:
                break
            rows = setup.batch(step)
            run.begin_step(step + 1)
            batch = setup.put(rows)
            state, metrics = setup.update(state, batch)
            done = step + 1
            tokens += _count_tokens(rows.weights)
            norms.append(metrics["grad_norm"])
            validates = _validates(setup, done)
            is_logged = done == config.steps or done % config.log_every == 0 or validates
            if is_logged:
                _check_finite(norms, done)
                row = {name: float(value) for name, value in metrics.items()}
                if setup.rows is not None:
                    row["epoch"] = done * config.batch_size / setup.rows
                row |= clock.metrics(tokens)
                row["time/micro_batch_fill"] = setup.micro_batch_fill([batch])
                if validates:
                    row |= setup.validate(state.params)
                    state = _count(setup, state, row["validation/loss"])
                    stopped = _has_stopped(config, state)
                run.records.metrics(done, row)
                run.progress.show(done, _note(row))
                clock, tokens, norms = Clock(), 0, []
            # No state is saved after an update that was not applied.
            run.end_step(done, state, functools.partial(_check_finite, norms, done))
            if stopped:
                run.save(state)
                run.progress.say(
                    f"stopped after step {done}: no lower validation loss in {config.patience} "
                    f"validations; the model of the lowest one is {_best(config)}"
                )
        if prompts is not None:
            result = run.evaluate(config.steps, setup.model, state.params, task, prompts)
            echo(evaluation_table({"SFT": result}))
    return state


def _validates(setup: SupervisedSetup, done: int) -> bool:
    every = setup.config.run.evaluate_every
    is_due = done == setup.config.steps or bool(every and done % every == 0)
    return bool(setup.validation) and is_due


def _count(setup: SupervisedSetup, state: TrainState, loss: float) -> TrainState:
    """Count a validation for `patience`, and write the model of the lowest loss."""
    if setup.config.patience is None:
        return state
    state, is_lowest = count_validation(state, loss, setup.model.placement)
    if is_lowest:
        setup.save_best(state.params, _best(setup.config))
    return state


def _has_stopped(config: SFTConfig, state: TrainState) -> bool:
    return config.patience is not None and validations_since_lowest(state) >= config.patience


def _best(config: SFTConfig) -> Path:
    return Path(config.run.directory) / _BEST


def _count_tokens(weights: np.ndarray) -> int:
    """Count the tokens of rows, up to the last one with a weight."""
    places = np.arange(1, weights.shape[1] + 1)
    return int(np.max(np.where(weights != 0, places, 0), axis=1).sum())


def _check_finite(norms: list[jax.Array], step: int) -> None:
    bad = int(np.sum(~np.isfinite(jax.device_get(norms))))
    if bad:
        raise FloatingPointError(
            f"the gradient was not finite in {bad} of the {len(norms)} updates up to step {step}, "
            "which were not applied; lower optimizer.learning_rate, or compute in float32"
        )


def _note(row: dict[str, float]) -> str:
    names = ("loss", "reward_accuracy", "validation/loss", "validation/reward_accuracy")
    return "  ".join(f"{name} {row[name]:.3f}" for name in names if name in row)


def check_config(config: SFTConfig) -> None:
    """Check what needs no device: directories, data or task, the lengths of rows, the gate.

    Raises:
      ValueError: If something in the config cannot work.
    """
    if config.data is None:
        _check_task(config)
        return
    config = pin_models(config, Path(config.run.directory), ask=False)
    check_run(config)
    build_loggers(config.run)
    preference_loss(config)
    read_rows_of(config)


def _check_task(config: SFTConfig) -> tuple[DemonstratedTask, Prompts | None]:
    """Check a config of demonstrations, and return its task and the prompts of the evaluation."""
    task = load_task(config.task.name, config.task.args)
    if not isinstance(task, DemonstratedTask):
        raise ValueError(
            f"task.name: must be a task with demonstrations, such as countdown, got "
            f"{config.task.name!r}"
        )
    check_run(config)
    build_loggers(config.run)
    check_demonstrations(config, task)
    if config.evaluation is None:
        return task, None
    longest = config.length_buckets[-1]
    prompts = evaluation_prompts(config.evaluation, task, task.tokenizer(), longest)
    _check_gate(config, task)
    return task, prompts


def _check_gate(config: SFTConfig, task: DemonstratedTask) -> None:
    """Check the measures of the gate before training, rather than when they are needed."""
    measures = [
        *probe_of(task, [], []),
        *(f"pass@{2**i}" for i in range(config.evaluation.samples.bit_length())),
    ]
    for section, limits in dataclasses.asdict(config.gate).items():
        for name in limits:
            if name not in measures:
                raise ValueError(unknown(f"gate.{section}", name, measures))


def gate_failures(gate: GateConfig, evaluation: Evaluation) -> list[str]:
    """Return a line for each limit of the gate that an evaluation misses.

    A measure is a skill measure of the task or `pass@K`. One without data, such as the arithmetic
    of a policy that writes no steps, misses its limit.
    """
    measures = evaluation.skill | {
        f"pass@{k}": value[0] for k, value in evaluation.pass_at_k.items()
    }
    failures = []
    for limits, word, passes in (
        (gate.at_least, "at least", lambda value, limit: value >= limit),
        (gate.at_most, "at most", lambda value, limit: value <= limit),
    ):
        for name, limit in limits.items():
            value = measures.get(name)
            if value is None or not passes(value, limit):
                found = "could not be measured" if value is None else f"is {value:.4f}"
                failures.append(f"{name} {found}, and must be {word} {limit}")
    return failures


def main(config: SFTConfig) -> None:
    """The verb `sft` of the command line; exit code 1 if the gate is missed."""
    sft(config)
    directory = Path(config.run.directory)
    if config.evaluation is None and config.gate != GateConfig():
        echo("entropy-rl sft: gate: not checked without evaluation", file=sys.stderr)
    evaluation = evaluation_directory(config, config.steps)
    result = read_result(evaluation) if config.evaluation is not None else None
    if result is not None and config.gate != GateConfig() and not has_settings(evaluation, config):
        raise ValueError(
            f"gate: {evaluation} has other settings than `evaluation`; delete it to evaluate again"
        )
    failures = gate_failures(config.gate, result) if result is not None else []
    for line in failures:
        echo(f"entropy-rl sft: gate: {line}", file=sys.stderr)
    if failures:
        sys.exit(1)
    of_shell = shlex.quote(str(directory))
    echo(f"\nnext: entropy-rl export --model {of_shell} --output DIRECTORY")
    if _best(config).is_dir():
        echo(f"the model of the lowest validation loss: {_best(config)}")
