"""Supervised fine-tuning (SFT) on the demonstrations of a task.

One step: batch of demonstrations -> weighted cross-entropy -> optimizer. After the last step the
model is evaluated, and compared with the minimum quality that the config requires (the gate).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.cli.main import run_verb
from entropy_rl.config.sft import GateConfig, SFTConfig
from entropy_rl.config.values import unknown
from entropy_rl.evaluation import Evaluation, evaluation_prompts, read_result
from entropy_rl.experience.demonstrations import BATCHES_PER_BLOCK, PieceEncoder, batch_block
from entropy_rl.experience.prompts import Prompts
from entropy_rl.learner.optimizer import make_optimizer
from entropy_rl.learner.sft import make_supervised_step
from entropy_rl.learner.update import init_state
from entropy_rl.models import DecoderConfig, config_json, make_policy
from entropy_rl.report import evaluation_table
from entropy_rl.runs.digests import sha256_of_values
from entropy_rl.runs.directory import FREE_OF_RUN, MODEL_DIRECTORY, check_no_writer, check_run
from entropy_rl.runs.identity import check_identity, data_identity
from entropy_rl.runs.jsonl import write_atomically
from entropy_rl.runs.load_model import Model, make_model
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.runs.logging import Clock
from entropy_rl.tasks import load_task
from entropy_rl.tasks.task import DemonstratedTask, ProbedTask
from entropy_rl.trainer.open_run import open_run
from entropy_rl.trainer.run import evaluation_directory
from entropy_rl.types import TrainState

_LOG_EVERY = 50
# Fields that may change between two starts; not the steps: the learning rate depends on them.
_FREE = (*FREE_OF_RUN, "evaluation", "gate")


def sft(config: SFTConfig) -> TrainState:
    """Train a model from scratch, or resume the run, and return the last state.

    Args:
      config: All settings; the layout of the run directory is that of `train`.

    Raises:
      ValueError: If something in the config cannot work; before any training.
      Interrupted: If the run was asked to stop; its state is saved.
    """
    task, tokenizer, encode, prompts = _check(config)
    directory = Path(config.run.directory)
    # Demonstrations are a function of the seed and the task: the first ones identify them.
    first = _batches(config, task, encode, 0, tokenizer.pad_token_id)
    identity = {"demonstrations": {"": sha256_of_values(first)}}
    if config.evaluation is not None:
        split = config.evaluation.split
        identity |= data_identity({split: task.problems(split)})
    check_no_writer(config)
    check_identity(directory, identity, config.run.accept_changes)
    model = _make_model(config, tokenizer, directory)
    optimizer = make_optimizer(config.optimizer, config.steps)
    step_fn = make_supervised_step(model.policy, optimizer)

    start = init_state(model.params, optimizer)
    with open_run(config, start, "sft", identity, _FREE) as (run, state):
        _keep_model_files(model)
        clock, tokens, batches, block = Clock(), 0, [], -1
        for step in range(int(state.step), config.steps):
            if step // BATCHES_PER_BLOCK != block:
                block = step // BATCHES_PER_BLOCK
                batches = _batches(config, task, encode, block, model.pad_id)
            ids, weights = batches[step % BATCHES_PER_BLOCK]
            run.begin_step(step + 1)
            state, metrics = step_fn(state, ids, weights)
            tokens += ids.size
            if step + 1 == config.steps or (step + 1) % _LOG_EVERY == 0:
                metrics = {name: float(value) for name, value in metrics.items()}
                run.records.metrics(step + 1, metrics | clock.metrics(tokens))
                run.progress.show(step + 1, f"loss {metrics['loss']:.3f}")
                clock, tokens = Clock(), 0
            run.end_step(step + 1, state)

        if prompts is not None:
            result = run.evaluate(config.steps, model, state.params, task, prompts)
            print(evaluation_table({"SFT": result}))
    return state


def check_config(config: SFTConfig) -> None:
    """Check what needs no device: directories, the task, the lengths of demonstrations, the gate.

    Raises:
      ValueError: If something in the config cannot work.
    """
    _check(config)


def _check(config: SFTConfig) -> tuple[DemonstratedTask, Any, PieceEncoder, Prompts | None]:
    """Check a config, and return task, tokenizer, encoder and prompts of the evaluation."""
    task = load_task(config.task.name, config.task.args)
    if not isinstance(task, DemonstratedTask):
        raise ValueError(
            f"task.name: must be a task with demonstrations, such as countdown, got "
            f"{config.task.name!r}"
        )
    check_run(config, _FREE)
    build_loggers(config.run)
    tokenizer = task.tokenizer()
    encode = PieceEncoder(tokenizer)
    _batches(config, task, encode, 0, tokenizer.pad_token_id)  # raises if a bucket is too short
    if config.evaluation is None:
        return task, tokenizer, encode, None
    prompts = evaluation_prompts(config.evaluation, task, tokenizer, config.length_buckets[-1])
    _check_gate(config, task)
    return task, tokenizer, encode, prompts


def _batches(
    config: SFTConfig, task: DemonstratedTask, encode: PieceEncoder, block: int, pad_id: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    return batch_block(
        task,
        encode,
        seed=config.seed,
        block=block,
        batch_size=config.batch_size,
        length_buckets=config.length_buckets,
        pad_id=pad_id,
    )


def _check_gate(config: SFTConfig, task: DemonstratedTask) -> None:
    """Check the measures of the gate before training, rather than when they are needed."""
    skill = task.probe([], []) if isinstance(task, ProbedTask) else {}
    measures = [*skill, *(f"pass@{2**i}" for i in range(config.evaluation.samples.bit_length()))]
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


def _make_model(config: SFTConfig, tokenizer: Any, directory: Path) -> Model:
    """Build the untrained model, whose files are to be in the run's directory."""
    shape = config.architecture
    decoder = DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        rope_theta=1e4,
        norm_eps=1e-6,
        qkv_bias=False,
        qk_norm=True,
        tie_embeddings=True,
        initializer_range=0.05,
    )
    make = functools.partial(make_policy, decoder, jnp.float32)
    return make_model(
        lambda mesh: make(mesh=mesh),
        make().init(jax.random.key(config.seed)),
        decoder,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id,
        directory=directory / MODEL_DIRECTORY,
    )


def _keep_model_files(model: Model) -> None:
    """Save config.json and the tokenizer in the run's directory."""
    model.directory.mkdir(exist_ok=True)
    model.tokenizer.save_pretrained(str(model.directory))
    content = json.dumps(config_json(model.config, "float32", None), indent=1) + "\n"
    write_atomically(model.directory / "config.json", content)


def main(config: SFTConfig) -> None:
    """The verb `sft` of the command line; exit code 1 if the gate is missed."""
    sft(config)
    directory = Path(config.run.directory)
    result = read_result(evaluation_directory(config, config.steps))
    failures = gate_failures(config.gate, result) if config.evaluation and result else []
    for line in failures:
        print(f"entropy-rl sft: gate: {line}", file=sys.stderr)
    if failures:
        sys.exit(1)
    print(f"\nnext: entropy-rl export --model {directory} --output DIRECTORY")


if __name__ == "__main__":
    sys.exit(run_verb("sft", sys.argv[1:]))
