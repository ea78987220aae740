"""`make_batch`: from a scored rollout to a `TrainBatch`, and its statistics and masks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from entropy_rl.config.checks import require
from entropy_rl.types import FinishReason, Rollout, TokenStats, TrainBatch


def make_batch(
    rollout: Rollout,
    rewards: ArrayLike | Sequence[float],
    has_reward: ArrayLike | Sequence[bool],
    *,
    pad_id: int,
    mask_truncated: bool = False,
) -> TrainBatch:
    """Build a training batch from a scored rollout.

    The old log-probs are those of the sampler. Those of the trainer come from `make_stats_pass`
    with the parameters before the first update; token weights that correct the difference to the
    sampler need them.

    Args:
      rollout: P prompts with G completions each.
      rewards: f32[B].
      has_reward: bool[B], or numbers 0 and 1; False for completions whose check timed out or
        crashed.
      pad_id: Fills the end of the rows.
      mask_truncated: Whether completions that were cut off at the limit of new tokens have no loss.

    Returns:
      The batch.

    Raises:
      ValueError: `rewards` or `has_reward` has another shape, or `has_reward` other values, such
        as rewards or verdicts, which would all be True.
    """
    _check_flags("make_batch: has_reward", has_reward)
    rewards, has_reward = jnp.asarray(rewards, jnp.float32), jnp.asarray(has_reward, bool)
    for name, array in (("rewards", rewards), ("has_reward", has_reward)):
        shape = rollout.completion_ids.shape[:1]
        require(array.shape == shape, f"make_batch: {name}", array.shape, f"of shape {shape}")
    return _make_batch(rollout, rewards, has_reward, pad_id=pad_id, mask_truncated=mask_truncated)


def _check_flags(name: str, values: ArrayLike | Sequence[bool]) -> None:
    """Check that values are booleans or 0 and 1, unless they are traced.

    Raises:
      ValueError: They are something else, which a cast to bool would make True.
    """
    if isinstance(values, jax.Array) and (
        values.dtype == jnp.bool_ or isinstance(values, jax.core.Tracer)
    ):
        return
    values = np.asarray(values)
    is_number = values.dtype == np.bool_ or np.issubdtype(values.dtype, np.number)
    flags = is_number and np.isin(values, (0, 1)).all()
    require(bool(flags), name, values.tolist(), "booleans, or 0 and 1")


@functools.partial(jax.jit, static_argnames=("pad_id", "mask_truncated"))
def _make_batch(
    rollout: Rollout,
    rewards: jax.Array,
    has_reward: jax.Array,
    *,
    pad_id: int,
    mask_truncated: bool,
) -> TrainBatch:
    ids, prompt_length = join_prompt_and_completion(
        rollout.prompt_ids, rollout.prompt_mask, rollout.completion_ids, pad_id
    )
    return TrainBatch(
        ids=ids,
        prompt_length=prompt_length,
        completion_ids=rollout.completion_ids,
        completion_mask=rollout.completion_mask,
        old_log_probs=rollout.log_probs,
        old_entropy=rollout.entropy,
        sampler_log_probs=rollout.log_probs,
        rewards=rewards,
        has_reward=has_reward,
        loss_row_mask=rollout.finish_reason != FinishReason.LENGTH if mask_truncated else None,
    )


def join_prompt_and_completion(
    prompt_ids: jax.Array, prompt_mask: jax.Array, completion_ids: jax.Array, pad_id: int
) -> tuple[jax.Array, jax.Array]:
    """Move each completion behind its prompt, so that rows are padded at their end only.

    Args:
      prompt_ids: int32[P, S], right-padded.
      prompt_mask: bool[P, S].
      completion_ids: int32[B, N], right-padded.
      pad_id: Fills the end.

    Returns:
      (ids int32[B, S + N], prompt_length int32[B]).
    """
    rows, new = completion_ids.shape
    prompts, length = prompt_ids.shape
    prompt_length = jnp.repeat(prompt_mask.sum(-1, dtype=jnp.int32), rows // prompts)
    ids = jnp.full((rows, length + new), pad_id, jnp.int32)
    ids = ids.at[:, :length].set(
        jnp.repeat(jnp.where(prompt_mask, prompt_ids, pad_id), rows // prompts, axis=0)
    )
    columns = prompt_length[:, None] + jnp.arange(new)[None]
    return ids.at[jnp.arange(rows)[:, None], columns].set(completion_ids), prompt_length


def loss_mask(batch: TrainBatch) -> jax.Array:
    """bool[B, N], the tokens with a loss: of rows with a reward that `loss_row_mask` includes."""
    rows = batch.has_reward
    if batch.loss_row_mask is not None:
        rows = rows & batch.loss_row_mask
    return batch.completion_mask & rows[:, None]


def token_stats(
    batch: TrainBatch, log_probs: jax.Array | None = None, entropy: jax.Array | None = None
) -> TokenStats:
    """Collect the statistics of a mini-batch, with the mask of the baseline.

    Every row with a reward counts in the baseline. Shaping and loss use `loss_mask` instead.

    Args:
      batch: The mini-batch.
      log_probs: f32[B, N], of the policy that is being updated; None if not computed yet.
      entropy: f32[B, N], of the same policy; None if not computed yet.
    """
    return TokenStats(
        log_probs=log_probs,
        old_log_probs=batch.old_log_probs,
        entropy=entropy,
        old_entropy=batch.old_entropy,
        mask=batch.completion_mask & batch.has_reward[:, None],
        has_reward=batch.has_reward,
        sampler_log_probs=batch.sampler_log_probs,
        values=batch.values,
        greedy_rewards=batch.greedy_rewards,
        extras=batch.extras,
    )
