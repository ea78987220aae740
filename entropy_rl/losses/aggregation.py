"""Aggregation of token losses: sums over parts of a mini-batch add up to those of the whole.

tokens, sequences = counts(mask)          # of the whole mini-batch, before it is split
loss = Σ aggregation_weights(...) · token losses
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Aggregation = Literal["token-mean", "sequence-mean", "constant"]


def counts(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Count what a loss is averaged over.

    Args:
      mask: bool[B, N], of the whole mini-batch.

    Returns:
      (tokens int32[], sequences int32[]); a row without a token is no sequence.
    """
    return jnp.sum(mask, dtype=jnp.int32), jnp.sum(jnp.any(mask, axis=1), dtype=jnp.int32)


def aggregation_weights(
    mask: jax.Array,
    aggregation: Aggregation,
    *,
    tokens: jax.Array | int,
    sequences: jax.Array | int,
    max_tokens: int | None = None,
) -> jax.Array:
    """Weights with which token losses become one number: loss = Σ weightsᵢₜ · lossᵢₜ.

    token-mean:    mᵢₜ / tokens                     mean over all tokens (DAPO)
    sequence-mean: mᵢₜ / (lenᵢ · sequences)         mean over sequences of their means (GRPO)
    constant:      mᵢₜ / (max_tokens · sequences)   no length in it (Dr. GRPO)

    `tokens` and `sequences` are those of the whole mini-batch also when `mask` is a part of it. So
    the sums over the parts add up to that of the whole, and nothing is divided afterwards.

    Args:
      mask: bool[B, N]; False on every token of a row that is outside of the loss.
      aggregation: "token-mean", "sequence-mean" or "constant".
      tokens: Tokens that count, from `counts`.
      sequences: Rows with such a token, from `counts`.
      max_tokens: Limit of new tokens; read by "constant" alone.

    Returns:
      f32[B, N]; all zero if nothing counts.

    Raises:
      ValueError: `mask` is not of rank 2, or `aggregation` is unknown.
    """
    if mask.ndim != 2:
        raise ValueError(f"aggregation_weights: mask must have shape [B, N], got {mask.shape}")
    weights = mask.astype(jnp.float32)
    # Where a count is 0 so is the mask: the 1 only keeps 0 / 0 away.
    sequences = jnp.maximum(sequences, 1)
    if aggregation == "token-mean":
        return weights / jnp.maximum(tokens, 1)
    if aggregation == "sequence-mean":
        lengths = jnp.sum(weights, axis=1, keepdims=True)
        return weights / jnp.maximum(lengths, 1) / sequences
    if aggregation == "constant":
        return weights / max_tokens / sequences
    raise ValueError(
        "aggregation_weights: aggregation: must be one of token-mean, sequence-mean, constant, got "
        f"{aggregation!r}"
    )
