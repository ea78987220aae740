"""Advantages over the whole rollout: what a chain computes before it is cut into mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from entropy_rl.advantages import Transform
from entropy_rl.advantages.transform import reads_rollout, recorded_part
from entropy_rl.distributed.sharding import row_sharding
from entropy_rl.learner.batch import token_stats
from entropy_rl.types import TokenStats, TrainBatch

RolloutAdvantagesFn = Callable[[Sequence[TrainBatch]], list[TrainBatch]]


def make_rollout_advantages(
    advantage: Transform, mesh: Mesh | None = None
) -> RolloutAdvantagesFn | None:
    """Build the function that computes advantages over all mini-batches of a rollout.

    It evaluates the recorded part of the chain (`recorded_part`) on the rows of all mini-batches
    together, so that the statistics of its members of scope "batch" are those of the rollout.

    Args:
      advantage: The whole chain.
      mesh: The mesh that rows are sharded over; None on one device.

    Returns:
      A function (mini-batches) -> mini-batches with `TrainBatch.rollout_advantages`; None for a
      chain whose recorded part has no member of scope "batch".
    """
    if not reads_rollout(advantage):
        return None
    recorded, _ = recorded_part(advantage)

    def advantages(batches: Sequence[TrainBatch]) -> list[jax.Array]:
        rewards = jnp.concatenate([batch.rewards for batch in batches])
        stats = [token_stats(batch) for batch in batches]
        values = recorded(rewards[:, None], jax.tree.map(lambda *x: jnp.concatenate(x), *stats))
        return jnp.split(values, len(batches))

    compiled = jax.jit(advantages, out_shardings=row_sharding(mesh))

    def with_advantages(batches: Sequence[TrainBatch]) -> list[TrainBatch]:
        values = compiled(list(batches))
        return [b.replace(rollout_advantages=x) for b, x in zip(batches, values, strict=True)]

    return with_advantages


def make_base_advantages(
    advantage: Transform,
) -> Callable[[TrainBatch, TokenStats], jax.Array]:
    """Build the function (mini-batch, stats) -> advantages before shaping, f32[B, 1] or f32[B, N].

    It starts from `TrainBatch.rollout_advantages`. Where these are None, the mini-batch is the
    whole rollout, and the chain starts from its rewards.
    """
    recorded, rest = recorded_part(advantage)

    def base_advantages(batch: TrainBatch, stats: TokenStats) -> jax.Array:
        start = batch.rollout_advantages
        if start is None:
            start = recorded(batch.rewards[:, None], stats)
        return rest(start, stats)

    return base_advantages
