"""Set up supervised training on conversations, or on pairs of them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from entropy_rl.config.checks import require
from entropy_rl.config.sft import SFTConfig
from entropy_rl.distributed.sharding import check_rows, commit, make_mesh
from entropy_rl.experience.chat_data import ChatRows, Row, batch_of_step, make_rows, read_chats
from entropy_rl.runs.digests import sha256_of_values
from entropy_rl.runs.directory import check_only_writer, check_run
from entropy_rl.runs.hub import pin_models
from entropy_rl.runs.identity import Identity, check_identity, models_identity
from entropy_rl.runs.load_model import ModelFiles, check_length, load_model, read_model_files
from entropy_rl.runs.loggers import build_loggers
from entropy_rl.trainer.supervised import SupervisedSetup, preference_loss, supervised_start


def read_rows_of(config: SFTConfig) -> tuple[ChatRows, ModelFiles]:
    """Read and encode the conversations of a config, without the weights of its model.

    Returns:
      (the rows, the files of the model).

    Raises:
      ValueError: If they cannot be trained on, or the longest does not fit into a micro-batch.
    """
    files, pairs = read_model_files(config.model), config.loss is not None
    rows = read_chats(config.data, files.tokenizer, files.eos_ids, pairs, config.seed)
    tokens = config.batching.max_tokens_per_micro_batch
    require(
        tokens >= rows.length,
        "batching.max_tokens_per_micro_batch",
        tokens,
        f">= {rows.length}, the longest row",
    )
    return rows, files


def set_up_chats(config: SFTConfig) -> SupervisedSetup:
    """Read the data, load the model, and build the state before the first step.

    Raises:
      ValueError: If something in the config cannot work; cheap checks come first.
    """
    directory = Path(config.run.directory)
    config = pin_models(config, directory)
    check_run(config)
    build_loggers(config.run)
    mesh = make_mesh(config.mesh)
    loss = preference_loss(config)
    check_rows(mesh, config.batch_size, 1 if loss is None else 2, "batch_size")
    check_only_writer(config)
    rows, files = read_rows_of(config)
    check_length(files, rows.length)
    identity = _identify(config, rows)
    check_identity(directory, identity, config.run.accept_changes)
    model = load_model(config.model, mesh, jax.random.key(config.seed), files)
    if config.model.lora is None:  # a LoRA run to go on from, with all parameters
        model = model.merged()
    size, length, pad_id = config.batch_size, rows.length, model.pad_id
    make = functools.partial(make_rows, batch_size=size, length=length, pad_id=pad_id)
    places = range(0, len(rows.validation), size)
    setup = SupervisedSetup(
        config=config,
        model=model,
        batch=functools.partial(
            batch_of_step,
            rows.train,
            seed=config.seed,
            batch_size=size,
            length=length,
            pad_id=pad_id,
        ),
        validation=[make(rows.validation[i : i + size]) for i in places],
        identity=identity,
        start=supervised_start(model, config),
        loss=loss,
        rows=len(rows.train),
    )
    # The reference shares the base of an adapter.
    reference = commit(model.params) if setup.has_reference else None
    model = dataclasses.replace(model, params=reference, adapter=None)
    return dataclasses.replace(setup, model=model)


def _plain(row: Row) -> list[Any]:
    return [[text.ids.tolist(), text.mask.tolist()] for text in row]


def _identify(config: SFTConfig, rows: ChatRows) -> Identity:
    """Return digests of the encoded rows and of the model."""
    splits = {"train": rows.train, "validation": rows.validation}
    conversations = {
        f"data.{name}": sha256_of_values(map(_plain, found))
        for name, found in splits.items()
        if found
    }
    return {"conversations": conversations} | models_identity(config)
