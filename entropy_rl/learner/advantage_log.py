"""Advantages of recorded samples, before and after shaping, for samples.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from entropy_rl.advantages import Transform, baseline_and_shaping
from entropy_rl.learner.batch import loss_mask, token_stats
from entropy_rl.learner.rollout_advantages import make_base_advantages
from entropy_rl.types import TrainBatch


class Advantages(NamedTuple):
    """Advantages of the first R rows of a mini-batch."""

    rewards: jax.Array  # f32[R]
    has_reward: jax.Array  # bool[R]
    mask: jax.Array  # bool[R, N]
    before: jax.Array  # f32[R, 1] or f32[R, N], before shaping
    after: jax.Array  # f32[R, 1] or f32[R, N]


def make_advantages(advantage: Transform, rows: int) -> Callable[[TrainBatch], Advantages]:
    """Build the function that computes the advantages of the first update on a rollout.

    In that update the policy is still that of the old log-probs and entropies, so it needs no
    forward pass.

    Args:
      advantage: The whole chain. It is cut before its first member of scope "token" or "sequence".
      rows: R. The other rows of the mini-batch count in baselines all the same.

    Returns:
      A jitted function (mini-batch) -> `Advantages`.
    """
    base_advantages = make_base_advantages(advantage)
    _, shaping = baseline_and_shaping(advantage)

    def advantages(batch: TrainBatch) -> Advantages:
        stats = token_stats(batch, batch.old_log_probs, batch.old_entropy)
        before = base_advantages(batch, stats)
        after = shaping(before, stats.replace(mask=loss_mask(batch)))
        found = Advantages(batch.rewards, batch.has_reward, stats.mask, before, after)
        return jax.tree.map(lambda x: x[:rows], found)

    return jax.jit(advantages)


def advantage_fields(found: Advantages, rows: int) -> list[dict[str, Any]]:
    """Format advantages for samples.jsonl.

    Args:
      found: Host copies, of the first mini-batch of a rollout.
      rows: Number of rows that are recorded.

    Returns:
      For each row `reward`, and `advantage_before` and `advantage_after` as lists of one number per
      token, or of one number for all tokens. All are null for a row without a reward, and for one
      of a later mini-batch.
    """
    fields = []
    for b in range(rows):
        known = b < len(found.has_reward) and bool(found.has_reward[b])
        before, after = (
            _values(x[b], found.mask[b]) if known else None for x in (found.before, found.after)
        )
        reward = float(found.rewards[b]) if known else None
        fields.append({"reward": reward, "advantage_before": before, "advantage_after": after})
    return fields


def _values(row: np.ndarray, mask: np.ndarray) -> list[float]:
    return [round(float(x), 6) for x in (row if len(row) == 1 else row[mask])]
