"""`make_stats_pass`: log-probs and entropies of a mini-batch, without a gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax

from entropy_rl.learner.micro_batches import MicroBatches, PredictingHidden
from entropy_rl.learner.pass_settings import PassSettings
from entropy_rl.lm_head.log_probs import log_prob_and_entropy
from entropy_rl.types import Params, Policy, TrainBatch

StatsFn = Callable[[Params, TrainBatch], tuple[jax.Array, jax.Array]]


def make_stats_pass(policy: Policy, settings: PassSettings = PassSettings()) -> StatsFn:
    """Build the forward pass `(params, batch) -> (log_probs f32[B, N], entropy f32[B, N])`.

    Args:
      policy: The model.
      settings: Temperature and micro-batches.

    Returns:
      A pure function, to be jitted by the caller. It computes all rows, with or without a reward.
    """

    def read(params: Params, at: PredictingHidden, rows: TrainBatch) -> tuple[jax.Array, jax.Array]:
        ids, mask = at.pack(rows.completion_ids), at.pack(rows.completion_mask)
        return log_prob_and_entropy(
            at.hidden,
            policy.head(params),
            ids,
            mask,
            temperature=settings.temperature,
            mesh=settings.mesh,
        )

    def stats_pass(params: Params, batch: TrainBatch) -> tuple[jax.Array, jax.Array]:
        parts = MicroBatches(policy, batch, batch.completion_mask, settings)
        return parts.map_tokens(read, params, batch, outputs=2)

    return stats_pass
