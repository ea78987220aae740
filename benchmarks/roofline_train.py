"""Updates as this library does them, and whole RL steps with their phases."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import roofline_model as model
from roofline_machine import say, timed
from roofline_setup import Setup, measurement

from entropy_rl.advantages import chain, group_normalize, shape_by_entropy
from entropy_rl.config.train import OptimizerConfig
from entropy_rl.learner.batch import make_batch
from entropy_rl.learner.optimizer import make_optimizer
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.learner.stats_pass import make_stats_pass
from entropy_rl.learner.update import init_state, make_update
from entropy_rl.models.decoder import DecoderConfig
from entropy_rl.planning import counting
from entropy_rl.planning.counting import Cost
from entropy_rl.rollout import make_generate
from entropy_rl.types import TrainBatch, TrainState

# too small to change a float32 weight: every run has the same work, random choices included
_RATE = 1e-12


def _update(setup: Setup, micro_batch: int, fused_loss: bool) -> tuple[Any, TrainState]:
    """The update with the advantage of the paper, and a state with random parameters."""
    optimizer = make_optimizer(OptimizerConfig(_RATE))
    update = make_update(
        setup.policy,
        chain(group_normalize(setup.group), shape_by_entropy(alpha=0.4, kappa=2.0)),
        optimizer,
        settings=PassSettings(max_tokens_per_micro_batch=micro_batch, fuse_loss=fused_loss),
    )
    shapes = jax.eval_shape(setup.policy.init, jax.random.key(0))
    params = model.random_params(shapes, "float32", seed=1)
    # Donated: beside the copy that it makes there might be no room for the first one.
    return update, jax.jit(lambda p: init_state(p, optimizer), donate_argnums=0)(params)


def _check(metrics: dict[str, jax.Array], tokens: int) -> None:
    """Stops if the update was not one of these tokens: its time would mean nothing."""
    found, norm = int(metrics["tokens"]), float(metrics["grad_norm"])
    if found != tokens or not np.isfinite(norm) or norm == 0:
        raise ValueError(f"update: {found} tokens of {tokens}, with a gradient of norm {norm}")


def decode_rows(
    c: DecoderConfig, lengths: np.ndarray, group_size: int, prompt_tokens: int, itemsize: int
) -> Cost:
    """Count all decode steps after the first token, as arrays over the steps.

    A row costs nothing after its end. The rows of a group share a copy of their prompt.

    Args:
      c: The architecture.
      lengths: int[B], tokens of each completion; rows of a group are contiguous.
      group_size: Rows of a group.
      prompt_tokens: Tokens of a prompt.
      itemsize: Bytes of a weight, key or value.
    """
    longest = lengths.reshape(-1, group_size).max(-1)
    step = np.arange(1, lengths.max())  # computes token `step`, from the `step` tokens before it
    alive, prompts = ((x[:, None] > step[None]).sum(0).astype(float) for x in (lengths, longest))
    return counting.decode_step(c, alive, step, prompts, prompt_tokens, itemsize)


def cast_weights(c: DecoderConfig, itemsize: int) -> Cost:
    """Count the cast of float32 master weights to the decoding dtype: one read and one write."""
    moved = counting.parameters(c) * (counting.F32 + itemsize)
    return Cost(0.0, moved if itemsize < counting.F32 else 0)


def training_flops(c: DecoderConfig, prompt_lengths: np.ndarray, lengths: np.ndarray) -> float:
    """Count forward and backward pass: 6 N FLOPs per token, plus attention."""
    return 3 * counting.forward_flops(c, prompt_lengths, lengths)


def _update_costs(setup: Setup, lengths: np.ndarray) -> tuple[Cost, Cost]:
    """Of an update with completions of these lengths: the products, then the optimizer."""
    flops = training_flops(setup.config, np.full(len(lengths), setup.prompt), lengths)
    moved = counting.optimizer_bytes(counting.parameters(setup.config), OptimizerConfig(_RATE))
    return Cost(flops, 0.0), Cost(0.0, moved)


def train(setup: Setup, rows: int, micro_batch: int, fused_loss: bool) -> list[dict]:
    """Updates on random rows with lengths of a distribution."""
    ids, _, _ = setup.prompts(rows)
    rng, shape = np.random.default_rng(1), (rows, setup.limit)
    lengths = np.full(rows, setup.limit)
    if setup.mean is not None:
        lengths = np.minimum(rng.geometric(1 / setup.mean, rows), setup.limit)
    mask = np.arange(setup.limit)[None] < lengths[:, None]
    completions = np.where(mask, rng.integers(0, setup.config.vocab_size, shape, np.int32), 0)
    likely = np.where(mask, np.float32(-np.log(setup.config.vocab_size)), 0)
    batch = TrainBatch(
        ids=np.concatenate([np.repeat(ids, setup.group, axis=0), completions], axis=1),
        prompt_length=np.full(rows, setup.prompt, np.int32),
        completion_ids=completions,
        completion_mask=mask,
        old_log_probs=likely,
        old_entropy=-likely,
        sampler_log_probs=likely,
        rewards=_rewards(rows),
        has_reward=np.ones(rows, bool),
    )
    say(f"update, B = {rows}")
    update, state = _update(setup, micro_batch, fused_loss)
    held, batch = [state], jax.device_put(batch)
    del state

    def run() -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = update(held.pop(), batch)
        held.append(state)
        return state, metrics

    seconds, (_, metrics) = timed(run, setup.runs)
    _check(metrics, int(lengths.sum()))
    live = int(batch.prompt_length.sum() + lengths.sum())
    facts = dict(
        tokens_are="of prompts and completions",
        rows=rows,
        context=setup.context,
        response_tokens=int(lengths.sum()),
        micro_batch=micro_batch,
        fused_loss=fused_loss,
    )
    costs = _update_costs(setup, lengths)
    return [measurement(setup, f"update, B={rows}", seconds, live, *costs, **facts)]


def _rewards(rows: int) -> np.ndarray:
    """Both kinds in every group, so that there is something to learn."""
    return np.where(np.arange(rows) % 2, 1, -1).astype(np.float32)


def step(setup: Setup, rows: int, micro_batch: int, fused_loss: bool) -> list[dict]:
    """Rollout with the default decoding, log-probs by the trainer, and one update; judging takes no
    time.

    So many tokens end a completion that lengths are geometric. Useful tokens are those of
    completions.
    """
    c, prompts = setup.config, setup.prompts(rows)
    ends = [c.vocab_size]
    if setup.mean is not None:
        ends = np.linspace(
            1, c.vocab_size - 1, max(1, round(c.vocab_size / setup.mean)), dtype=int
        ).tolist()
    settings = dict(group_size=setup.group, max_new_tokens=setup.limit, eos_ids=ends, pad_id=0)
    generate = make_generate(setup.policy, **settings)
    stats = jax.jit(
        make_stats_pass(
            setup.policy,
            settings=PassSettings(temperature=1.0, max_tokens_per_micro_batch=micro_batch),
        )
    )
    say(f"step, B = {rows}")
    update, state = _update(setup, micro_batch, fused_loss)
    held, phases = [state], {"rollout": [], "stats": [], "update": []}
    del state

    def run() -> tuple[np.ndarray, dict]:
        state, clock = held.pop(), [time.perf_counter()]

        def done(*values: Any) -> None:
            jax.block_until_ready(values)
            clock.append(time.perf_counter())

        rollout = jax.device_get(generate(state.params, *prompts, jax.random.key(2)))
        done()
        batch = make_batch(rollout, _rewards(rows), np.ones(rows, bool), pad_id=0)
        log_probs, entropy = stats(state.params, batch)
        done(log_probs, entropy)
        state, metrics = update(state, batch.replace(old_log_probs=log_probs, old_entropy=entropy))
        done(state, metrics)
        held.append(state)
        for name, seconds in zip(phases, np.diff(clock), strict=True):
            phases[name].append(float(seconds))
        return rollout.completion_mask.sum(-1), metrics

    seconds, (lengths, metrics) = timed(run, setup.runs)
    phases = {
        name: values[1:] for name, values in phases.items()
    }  # without the first, which compiles
    _check(metrics, int(lengths.sum()))
    size = setup.itemsize
    sampling = (
        cast_weights(c, size),
        counting.prefill(c, rows // setup.group, setup.prompt, rows, size),
        decode_rows(c, lengths, setup.group, setup.prompt, size),
    )
    costs = {
        "rollout": sampling,
        "stats": (Cost(counting.forward_flops(c, np.full(rows, setup.prompt), lengths), 0.0),),
        "update": _update_costs(setup, lengths),
    }
    facts = dict(
        tokens_are="of completions",
        rows=rows,
        context=setup.context,
        mean_length=float(lengths.mean()),
        longest=int(lengths.max()),
        micro_batch=micro_batch,
        fused_loss=fused_loss,
    )
    parts = [(f"step, B={rows}", seconds, sum(costs.values(), ()))]
    parts += [(f"  its {name}", phases[name], costs[name]) for name in phases]
    tokens = int(lengths.sum())
    return [measurement(setup, what, times, tokens, *cost, **facts) for what, times, cost in parts]
