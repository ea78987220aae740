"""Set up supervised training from scratch on the demonstrations of a task."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.config.sft import SFTConfig
from entropy_rl.distributed.sharding import Placement, check_rows, make_mesh
from entropy_rl.experience.demonstrations import BATCHES_PER_BLOCK, batch_block
from entropy_rl.learner.sft import SupervisedBatch
from entropy_rl.models import DecoderConfig, make_policy
from entropy_rl.runs.digests import sha256_of_values
from entropy_rl.runs.directory import MODEL_DIRECTORY, check_only_writer
from entropy_rl.runs.identity import Identity, check_identity
from entropy_rl.runs.load_model import Model, make_model
from entropy_rl.tasks.task import DemonstratedTask
from entropy_rl.trainer.supervised import SupervisedSetup, supervised_start


def check_demonstrations(config: SFTConfig, task: DemonstratedTask) -> None:
    """Check the lengths of the first demonstrations.

    Raises:
      ValueError: If one is longer than the last bucket.
    """
    _demonstrations(config, task, task.tokenizer())(0)


def set_up_demonstrations(
    config: SFTConfig, task: DemonstratedTask, identity: Identity
) -> SupervisedSetup:
    """Build the untrained model of an architecture, and the state before the first step.

    Args:
      config: The config.
      task: The task, whose demonstrations are trained on.
      identity: Digests of what else the run is made of.

    Raises:
      ValueError: If the run in the directory has other demonstrations.
    """
    directory, mesh = Path(config.run.directory), make_mesh(config.mesh)
    check_rows(mesh, config.batch_size, 1, "batch_size")
    tokenizer = task.tokenizer()
    batch = _demonstrations(config, task, tokenizer)
    # Demonstrations are a function of the seed and the task: the first ones identify them.
    first = [[b.ids, b.weights] for b in map(batch, range(BATCHES_PER_BLOCK))]
    identity = {"demonstrations": {"": sha256_of_values(first)}} | identity
    check_only_writer(config)
    check_identity(directory, identity, config.run.accept_changes)
    model = _untrained_model(config, tokenizer, Placement(mesh, config.architecture.num_kv_heads))
    start = supervised_start(model, config)
    return SupervisedSetup(
        config=config,
        model=dataclasses.replace(model, params=None),
        batch=batch,
        validation=(),
        identity=identity,
        start=start,
    )


def _demonstrations(
    config: SFTConfig, task: DemonstratedTask, tokenizer: Any
) -> Callable[[int], SupervisedBatch]:
    # Demonstrations repeat the same few pieces.
    encode = functools.cache(functools.partial(tokenizer.encode, add_special_tokens=False))

    @functools.lru_cache(maxsize=1)
    def block_of(block: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return batch_block(
            task,
            encode,
            seed=config.seed,
            block=block,
            batch_size=config.batch_size,
            length_buckets=config.length_buckets,
            pad_id=tokenizer.pad_token_id,
        )

    def batch(step: int) -> SupervisedBatch:
        block, place = divmod(step, BATCHES_PER_BLOCK)
        return SupervisedBatch(*block_of(block)[place])

    return batch


def _untrained_model(config: SFTConfig, tokenizer: Any, placement: Placement) -> Model:
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
        placement.put_params(make().init(jax.random.key(config.seed))),
        decoder,
        placement,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id,
        directory=Path(config.run.directory) / MODEL_DIRECTORY,
    )
