"""google-tunix by its own RLCluster and GRPOLearner, with the vanilla rollout engine (the only one
for CPU).

Chosen to its advantage: everything jitted; a cache of exactly prompt + new tokens; top_p = 1
without top_k, for which it samples without sorting; no reference model, no logging, no checkpoints;
flash attention off, which is for TPU. The rows whose logits are held at once are tried out, see
`options`.

Its sampler cuts the end-of-sequence token off; here that is counted, as for the others.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workload
from flax import nnx
from tunix.cli.utils.model import apply_lora_to_model
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params
from tunix.rl import algo_core, common, rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout


def versions() -> dict[str, str]:
    packages = ("google-tunix", "jax", "flax", "qwix")
    return {package: importlib.metadata.version(package) for package in packages}


class Tokenizer:
    """Text is the numbers of its tokens; so the work of a tokenizer is next to nothing."""

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # none

    def eos_id(self) -> int:
        return workload.EOS

    def pad_id(self) -> int:
        return workload.PAD


def _load_model(directory: Path, lora: bool = False) -> qwen2.Qwen2:
    fields = json.loads((directory / "model" / "config.json").read_text())
    config = qwen2.ModelConfig(
        num_layers=fields["num_hidden_layers"],
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        hidden_dim=fields["intermediate_size"],
        num_heads=fields["num_attention_heads"],
        head_dim=fields["head_dim"],
        num_kv_heads=fields["num_key_value_heads"],
        rope_theta=fields["rope_theta"],
        norm_eps=fields["rms_norm_eps"],
        use_tied_embedding=fields["tie_word_embeddings"],
    )
    model = qwen2_params.create_model_from_safe_tensors(
        str(directory / "model"), config, mesh=_mesh(), dtype=jnp.float32
    )
    return _with_adapter(model, workload.load(directory)[0]) if lora else model


def _with_adapter(model: qwen2.Qwen2, size: workload.Size) -> qwen2.Qwen2:
    """The model with an adapter of all projections, by the function of its command line.

    Raises:
      RuntimeError: If qwix, which finds products while the model runs, has missed some.
    """
    names = workload.projections(size)
    path = "|".join(f".*{name}" for name in names)
    model = apply_lora_to_model(
        model, _mesh(), dict(module_path=path, rank=size.lora_rank, alpha=size.lora_alpha)
    )
    found = {path[1:4:2] for path, _ in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))}
    missed = [
        f"{name} of layer {i}"
        for i in range(size.layers)
        for name in names
        if (i, name) not in found
    ]
    if missed:
        raise RuntimeError(f"qwix adapts {len(found)} matrices, not {', '.join(missed)}")
    return model


def _set_adapter(model: qwen2.Qwen2, size: workload.Size) -> None:
    """Puts the adapter of `workload.draw_adapter` in place of that which the model has."""
    drawn = workload.draw_adapter(size)
    for path, x in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        _, layer, _, name, leaf = path
        x[...] = jnp.asarray(drawn[name][leaf.endswith("_b")][layer]).reshape(x.shape)


def _mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))


class _Lengths:
    """The reward, which also keeps how many tokens there were."""

    __name__ = "odd_number_of_tokens"

    def __init__(self, limit: int):
        self.limit, self.tokens = limit, 0

    def __call__(self, prompts: list[str], completions: list[str], **_) -> list[float]:
        lengths = np.array([min(len(text.split()) + 1, self.limit) for text in completions])
        self.tokens = int(lengths.sum())
        return workload.rewards_of(lengths).tolist()


def _learner(
    directory: Path, size: workload.Size, rows: int, optimizer, lora: bool = False
) -> grpo_learner.GRPOLearner:
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    mesh = _mesh()
    cluster = rl_cluster.RLCluster(
        actor=_load_model(directory, lora),
        tokenizer=Tokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer,
                eval_every_n_steps=10**9,
                mini_batch_size=size.prompts,
                # Without micro-batches it must not be given: 1 would still keep a sum of gradients.
                train_micro_batch_size=rows // size.samples if rows < size.rows else None,
                rollout_micro_batch_size=size.prompts,
                compute_logps_micro_batch_size=size.prompts,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=size.new_tokens,
                max_prompt_length=size.prompt_tokens,
                kv_cache_size=size.prompt_tokens + size.new_tokens,
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                eos_tokens=[workload.EOS],
            ),
        ),
    )
    return grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        algo_config=grpo_learner.GRPOConfig(
            num_generations=size.samples,
            num_iterations=1,
            beta=0.0,
            epsilon=workload.CLIP,
            loss_agg_mode="token-mean",
        ),
        reward_fns=_Lengths(size.new_tokens),
    )


def _examples(
    size: workload.Size, batch: workload.Batch, rows: int
) -> list[grpo_learner.TrainExample]:
    prompts = np.repeat(batch.prompts, len(batch.rewards) // len(batch.prompts), axis=0)
    parts = [slice(start, start + rows) for start in range(0, len(prompts), rows)]
    return [
        grpo_learner.TrainExample(
            prompt_ids=jnp.asarray(prompts[part]),
            prompt_mask=jnp.ones(prompts[part].shape, bool),
            completion_ids=jnp.asarray(batch.completion_ids[part]),
            completion_mask=jnp.asarray(batch.mask[part]),
            advantages=jnp.asarray(batch.advantages[part]),
            ref_per_token_logps=None,
            old_per_token_logps=None,
        )
        for part in parts
    ]


def _scorer(model: qwen2.Qwen2):
    """The functions of its GRPO loss for log-probs and entropy, in one jit."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def score(state, prompt_ids, completion_ids):
        log_probs, logits = common.compute_per_token_logps(
            graphdef,
            state,
            prompt_tokens=prompt_ids,
            completion_tokens=completion_ids,
            pad_id=workload.PAD,
            eos_id=workload.EOS,
            return_logits=True,
        )
        return log_probs, algo_core.compute_entropy_from_logits(logits)

    return functools.partial(score, state)


def probe(directory: Path, lora: bool) -> dict:
    size, batch = workload.load(directory)
    (example,) = _examples(size, batch, size.rows)
    example = jax.tree.map(lambda x: x[: size.samples], example)
    mask = np.asarray(example.completion_mask)
    trainer = _learner(directory, size, size.rows, optax.sgd(0.0), lora).rl_cluster.actor_trainer

    def score():
        found = _scorer(trainer.model)(example.prompt_ids, example.completion_ids)
        return [np.where(mask, x, 0) for x in found]

    found = [score()]
    if lora:
        _set_adapter(trainer.model, size)
        found.append(score())
    train_step, _ = trainer.jit_train_and_eval_step()
    _, _, grad_norm = train_step(example)
    log_probs, entropy = map(np.stack, zip(*found, strict=True))
    trained = nnx.state(trainer.model, nnx.LoRAParam if lora else nnx.Param)
    return {
        "log_probs": log_probs,
        "entropy": entropy,
        "grad_norm": float(grad_norm),
        "trainable": sum(leaf.size for leaf in jax.tree.leaves(trained)),
    }


def options(directory: Path, work: str) -> dict[str, Callable]:
    """By the rows whose logits are held at once: as many as fit into memory, or few, as caches
    like.
    """
    size, _ = workload.load(directory)
    if work == "rollout":
        return {"vanilla": lambda: _rollout(directory)}
    kind, lora = workload.kind_of(work)
    make = {
        "score": _score,
        "update": functools.partial(_train, lora=lora),
        "step": functools.partial(_step, lora=lora),
    }[kind]
    return {
        f"{rows} rows at once": functools.partial(make, directory, rows)
        for rows in size.rows_at_once
    }


def _rollout(directory: Path) -> Callable[[int], int]:
    size, batch = workload.load(directory)
    cluster = _learner(directory, size, size.rows, optax.sgd(0.0)).rl_cluster
    prompts = [" ".join(map(str, row)) for row in batch.prompts for _ in range(size.samples)]

    def run(number: int) -> int:
        cluster.cluster_config.rollout_config.seed = number
        output = cluster.generate(prompts)
        return sum(min(len(row) + 1, size.new_tokens) for row in output.tokens)

    return run


def _score(directory: Path, rows: int) -> Callable[[int], int]:
    size, batch = workload.load(directory)
    score, examples = _scorer(_load_model(directory)), _examples(size, batch, rows)

    def run(_: int) -> int:
        jax.block_until_ready(
            [score(example.prompt_ids, example.completion_ids) for example in examples]
        )
        return batch.tokens

    return run


def _train(directory: Path, rows: int, lora: bool) -> Callable[[int], int]:
    size, batch = workload.load(directory)
    cluster = _learner(directory, size, rows, optax.adamw(workload.LEARNING_RATE), lora).rl_cluster
    examples = _examples(size, batch, rows)

    def run(_: int) -> int:
        for example in examples:  # as its learner does it
            cluster.update_actor([example], None)
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
        return batch.tokens

    return run


def _step(directory: Path, rows: int, lora: bool) -> Callable[[int], int]:
    """One round of the loop in its `train`, which itself cannot be halted between two steps."""
    size, batch = workload.load(directory)
    learner = _learner(directory, size, rows, optax.adamw(workload.LEARNING_RATE), lora)
    cluster, lengths = learner.rl_cluster, learner.reward_manager.reward_fns[0]
    prompts = np.array([" ".join(map(str, row)) for row in batch.prompts])
    micro = rows // size.samples

    def run(number: int) -> int:
        cluster.cluster_config.rollout_config.seed = number
        starts = range(0, size.prompts, micro)
        learner._run_global_step(
            full_batch_size=size.prompts,
            mini_batch_size=size.prompts,
            service_target_batch_size=size.prompts,
            grad_acc_steps=len(starts),
            train_iterator=iter([{"prompts": prompts[start : start + micro]} for start in starts]),
            eval_ds=None,
            skip_jit=False,
        )
        cluster.global_steps += 1
        jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
        return lengths.tokens

    return run
