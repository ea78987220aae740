"""This library, by its public functions, as its own trainer composes them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import turns
import workload

import entropy_rl as er
from entropy_rl.config.common import EpisodesConfig
from entropy_rl.experience.episodes import begin_episodes
from entropy_rl.experience.prompts import Prompts
from entropy_rl.rollout.turns import TurnPrograms
from entropy_rl.tasks import load_task

# Tokens of a part of the log-prob pass and of the update.
TOKENS_PER_MICRO_BATCH = 1280


def versions() -> dict[str, str]:
    return {"entropy_rl": er.__version__, "jax": jax.__version__}


def _load(directory: Path):
    size, batch = workload.load(directory)
    config, params = er.load_hf(directory / "model")
    return size, batch, er.make_policy(config), params


def _adapted(directory: Path, size: workload.Size, params, lora: bool):
    """Returns (the frozen parameters, those that are trained); without LoRA, (None, all)."""
    if not lora:
        return None, params
    config = er.models.LoraConfig(rank=size.lora_rank, alpha=size.lora_alpha)
    base = er.models.Base(params, er.models.lora_spec(config), str(directory / "model"))
    decoder = er.models.read_checkpoint_config(directory / "model")
    return base, er.models.init_adapter(jax.random.key(0), base.spec, decoder)


def _join(base: er.models.Base | None, trained):
    """The parameters for sampling and log-probs."""
    return trained if base is None else base.join(trained)


def _drawn(adapter, size: workload.Size):
    """The adapter of `workload.draw_adapter`, as a tree like a given one."""
    drawn = workload.draw_adapter(size)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(drawn[path[-2].key][path[-1].key == "lora_b"]), adapter
    )


def _train_batch(size: workload.Size, batch: workload.Batch, old_log_probs=None) -> er.TrainBatch:
    zeros = np.zeros(batch.mask.shape, np.float32)
    old = zeros if old_log_probs is None else old_log_probs
    prompts = np.repeat(batch.prompts, len(batch.rewards) // len(batch.prompts), axis=0)
    return er.TrainBatch(
        ids=jnp.asarray(np.concatenate([prompts, batch.completion_ids], 1)),
        prompt_length=jnp.full(len(prompts), size.prompt_tokens, jnp.int32),
        completion_ids=jnp.asarray(batch.completion_ids),
        completion_mask=jnp.asarray(batch.mask),
        old_log_probs=old,
        old_entropy=zeros,
        sampler_log_probs=old,
        rewards=jnp.asarray(batch.rewards),
        has_reward=jnp.ones(len(prompts), bool),
    )


def _parts(size: workload.Size) -> dict:
    return dict(max_tokens_per_micro_batch=TOKENS_PER_MICRO_BATCH, group_size=size.samples)


def _stats_pass(policy: er.Policy, size: workload.Size):
    return jax.jit(
        er.make_stats_pass(policy, settings=er.PassSettings(temperature=1.0, **_parts(size)))
    )


def _update(policy: er.Policy, base, size: workload.Size, optimizer, shape: bool = True):
    advantage = er.group_normalize(group_size=size.samples)
    if shape:
        advantage = er.chain(advantage, er.shape_by_entropy(alpha=0.4, kappa=2.0))
    clip = {"clip_low": workload.CLIP, "clip_high": workload.CLIP}
    loss = er.build_loss(er.LossConfig(surrogate={"name": "ppo_clip", **clip}))
    settings = er.PassSettings(**_parts(size))

    def make(policy: er.Policy):
        return er.make_update(policy, advantage, optimizer, loss, settings=settings)

    return er.models.on_base(make, policy, base, donate=(0,))


def probe(directory: Path, lora: bool) -> dict:
    size, batch, policy, params = _load(directory)
    base, trained = _adapted(directory, size, params, lora)
    group = slice(0, size.samples)
    parts = {name: value[group] for name, value in vars(batch).items() if name != "prompts"}
    data = _train_batch(size, workload.Batch(batch.prompts[:1], **parts))
    stats = _stats_pass(policy, size)
    found = [stats(_join(base, trained), data)]
    if lora:
        trained = _drawn(trained, size)
        found.append(stats(_join(base, trained), data))
    log_probs, entropy = found[-1]
    data = data.replace(old_log_probs=log_probs, sampler_log_probs=log_probs)
    optimizer = optax.sgd(0.0)
    # Without the shaping, which the others do not have: the same loss must have the same gradient.
    update = _update(policy, base, size, optimizer, shape=False)
    _, metrics = update(er.init_state(trained, optimizer), data)
    log_probs, entropy = map(np.stack, zip(*found, strict=True))
    return {
        "log_probs": log_probs,
        "entropy": entropy,
        "grad_norm": float(metrics["grad_norm"]),
        "trainable": sum(leaf.size for leaf in jax.tree.leaves(trained)),
    }


def options(directory: Path, work: str) -> dict[str, Callable]:
    kind, lora = workload.kind_of(work)
    if kind == "episodes":
        return {"default": functools.partial(_episodes, directory)}
    if kind == "rollout":
        return {"default": functools.partial(_rollout, directory)}
    make = {
        "score": _score,
        "update": functools.partial(_train, lora=lora),
        "step": functools.partial(_step, lora=lora),
    }[kind]
    return {f"micro-batches of {TOKENS_PER_MICRO_BATCH} tokens": functools.partial(make, directory)}


def _generate(size: workload.Size, policy: er.Policy):
    return er.make_generate(
        policy,
        group_size=size.samples,
        max_new_tokens=size.new_tokens,
        eos_ids=(workload.EOS,),
        pad_id=workload.PAD,
    )


def _sampler(size: workload.Size, batch: workload.Batch, policy: er.Policy):
    generate = _generate(size, policy)
    prompts, index = jnp.asarray(batch.prompts), jnp.arange(size.prompts)
    return lambda params, number: generate(
        params, prompts, jnp.ones(prompts.shape, bool), index, jax.random.key(number)
    )


def _rollout(directory: Path) -> Callable[[int], int]:
    size, batch, policy, params = _load(directory)
    sample = _sampler(size, batch, policy)
    return lambda number: int(sample(params, number).completion_mask.sum())


def _score(directory: Path) -> Callable[[int], int]:
    size, batch, policy, params = _load(directory)
    stats, data = _stats_pass(policy, size), _train_batch(size, batch)

    def run(_: int) -> int:
        jax.block_until_ready(stats(params, data))
        return batch.tokens

    return run


def _train(directory: Path, lora: bool) -> Callable[[int], int]:
    size, batch, policy, params = _load(directory)
    optimizer = optax.adamw(workload.LEARNING_RATE)
    log_probs, _ = _stats_pass(policy, size)(params, _train_batch(size, batch))
    data = _train_batch(size, batch, log_probs)
    base, trained = _adapted(directory, size, params, lora)
    update = _update(policy, base, size, optimizer)
    state = er.init_state(trained, optimizer)

    def run(_: int) -> int:
        nonlocal state
        state, metrics = jax.block_until_ready(update(state, data))
        return int(metrics["tokens"])

    return run


def _step(directory: Path, lora: bool) -> Callable[[int], int]:
    """As the trainer does it by default, the pass for the old log-probs included."""
    size, batch, policy, params = _load(directory)
    sample, stats = _sampler(size, batch, policy), _stats_pass(policy, size)
    optimizer = optax.adamw(workload.LEARNING_RATE)
    base, trained = _adapted(directory, size, params, lora)
    update = _update(policy, base, size, optimizer)
    state = er.init_state(trained, optimizer)

    def run(number: int) -> int:
        nonlocal state
        params = _join(base, state.params)
        rollout = jax.device_get(sample(params, number))
        rewards = workload.rewards_of(rollout.completion_mask.sum(-1))
        data = er.make_batch(rollout, rewards, np.ones(size.rows, bool), pad_id=workload.PAD)
        log_probs, entropy = stats(params, data)
        data = data.replace(old_log_probs=log_probs, old_entropy=entropy)
        state, metrics = jax.block_until_ready(update(state, data))
        return int(metrics["tokens"])

    return run


def _episodes(directory: Path) -> Callable[[int], dict[str, int]]:
    """A whole step of episodes of several turns, with the environment in its worker processes."""
    size, _, policy, params = _load(directory)
    tokenizer = turns.make_tokenizer(size)
    given: list[int] = []  # tokens that are appended to rows, call by call

    class Counting(TurnPrograms):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            extend = self.extend

            def counted(params, state, slots, t, ids, count):
                given.append(int(count.sum()))
                return extend(params, state, slots, t, ids, count)

            self.extend = counted

    importlib.import_module("entropy_rl.rollout.generate").TurnPrograms = Counting
    limits = EpisodesConfig(max_turns=size.turns, workers=1)
    task = load_task("turns:Turns", {"size": dataclasses.asdict(size)}, limits)
    prompts = Prompts(task.problems("train"), tokenizer, size.prompt_tokens).batch(0, size.prompts)
    generate = er.make_generate(
        policy,
        group_size=size.samples,
        max_new_tokens=size.new_tokens,
        eos_ids=(workload.EOS,),
        pad_id=workload.PAD,
        max_turn_tokens=size.new_tokens,
    )
    stats, optimizer = _stats_pass(policy, size), optax.adamw(workload.LEARNING_RATE)
    update = _update(policy, None, size, optimizer)
    state = er.init_state(params, optimizer)

    def run(number: int) -> dict[str, int]:
        nonlocal state
        given.clear()
        key = jax.random.key(number)
        problems = prompts.rows(size.samples)
        episodes = begin_episodes(task, tokenizer, problems, 0, key)
        rollout = generate(
            state.params, prompts.ids, prompts.mask, prompts.index, key, environments=episodes
        )
        rollout = jax.device_get(rollout)
        rewards = np.array([j.verdict is er.Verdict.CORRECT for j in episodes.judgements()])
        rewards = rewards.astype(np.float32)
        data = er.make_batch(rollout, rewards, np.ones(size.rows, bool), pad_id=workload.PAD)
        log_probs, entropy = stats(state.params, data)
        data = data.replace(old_log_probs=log_probs, old_entropy=entropy)
        state, metrics = jax.block_until_ready(update(state, data))
        tokens = int(metrics["tokens"])
        observations = sum(episode.length for episode in episodes.rows) - tokens
        return {
            "tokens": tokens,
            "prompt_tokens": int(prompts.mask.sum()),  # once for each group
            "observation_tokens": observations,
            "again": sum(given) - observations,
        }

    return run
