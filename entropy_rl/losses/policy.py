"""Losses: pure functions of per-token arrays that return per-token values, to be minimized.

`policy_loss` composes the terms and `aggregation_weights` says how token losses become one number:

    tokens, sequences = counts(mask)                     # of the whole mini-batch, before it is
    split loss = Σ aggregation_weights(...) · policy_loss(...)       # the sums of the parts add up
    to that of the whole

Only the log-probs of the policy that is being updated carry a gradient, and its entropy where it
has a coefficient. Advantages, weights, the old, the sampler's and the reference's log-probs are
constants here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.config.train import LossConfig
from entropy_rl.losses.controllers import ENTROPY_COEF
from entropy_rl.losses.inputs import MAX_LOG_RATIO, check_shapes, require_coefficient
from entropy_rl.losses.surrogate import ClipMasks, Surrogate
from entropy_rl.losses.token_weights import TokenWeights
from entropy_rl.types import TokenStats


class LossTerms(NamedTuple):
    """The terms of `policy_loss` before they are weighted, for metrics. 0 or False off the mask."""

    surrogate: jax.Array  # f32[B, N]
    clipped: ClipMasks
    kl: jax.Array | None  # f32[B, N]; None without a KL term
    weights: TokenWeights | None  # None without a token_weighting


def kl_estimate(
    log_probs: jax.Array, ref_log_probs: jax.Array, kind: Literal["k1", "k2", "k3"]
) -> jax.Array:
    """Estimate KL(π ‖ π_ref) from the log-probs of sampled tokens.

    With d = log π_ref(o) - log π(o):

    k1 = -d
    k2 = d² / 2
    k3 = exp(d) - d - 1

    For tokens sampled from π, k1 and k3 are unbiased and k2 is not; k2 and k3 are never negative
    and vary less. Source: http://joschu.net/blog/kl-approx.html.

    An estimator is one thing, its gradient another. As a loss on tokens sampled from π:
      k1: E[∇k1] = E[∇ log π] = 0. It restrains nothing and only adds noise.
      k2: E[∇k2] = ∇KL(π ‖ π_ref). The right gradient, in spite of the biased value.
      k3: E[∇k3] = ∇KL(π_ref ‖ π). That of the other KL; the two agree to first order near π_ref.
    Off-policy none of them holds exactly.

    Args:
      log_probs: f32[B, N] of the policy π that is being updated.
      ref_log_probs: f32[B, N] of the reference π_ref; a constant.
      kind: "k1", "k2" or "k3".

    Returns:
      f32[B, N], nats.

    Raises:
      ValueError: Shapes differ, or `kind` is unknown.
    """
    check_shapes("kl_estimate", log_probs=log_probs, ref_log_probs=ref_log_probs)
    d = jax.lax.stop_gradient(ref_log_probs) - log_probs
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * jnp.square(d)
    if kind == "k3":
        # Only from above: exp must not overflow, while a large negative d is where the KL must act.
        d = jnp.minimum(d, MAX_LOG_RATIO)
        # expm1, as exp(d) - 1 loses all digits of a small d
        return jnp.expm1(d) - d
    raise ValueError(f"kl_estimate: kind: must be one of k1, k2, k3, got {kind!r}")


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
    aggregation: Literal["token-mean", "sequence-mean", "constant"],
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
        raise ValueError(f"aggregation_weights: mask has shape {mask.shape}; expected [B, N]")
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


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_range: float,
) -> tuple[jax.Array, jax.Array]:
    """The squared error of a critic, clipped around its values from before.

    Lₜ = ½ max((Vₜ - Gₜ)², (clip(Vₜ, V_oldₜ - ε, V_oldₜ + ε) - Gₜ)²)

    A value that is already ε nearer to its target has no gradient; one that is further off always
    has. Source: the code of PPO, https://arxiv.org/abs/1707.06347, in OpenAI's baselines; in this
    form, with ε = 0.5, in veRL (`compute_value_loss`, `cliprange_value`).

    Args:
      values: f32[B, N] of the critic that is being updated; they alone have a gradient.
      old_values: f32[B, N] from before the first update.
      returns: f32[B, N], the targets G.
      mask: bool[B, N].
      clip_range: ε.

    Returns:
      (f32[B, N], 0 off the mask; bool[B, N], where the clip holds the value).

    Raises:
      ValueError: Shapes do not fit.
    """
    check_shapes("value_loss", mask=mask, values=values, old_values=old_values, returns=returns)
    # The inputs are cleaned, as in `policy_loss`.
    values, old_values, returns = (jnp.where(mask, x, 0) for x in (values, old_values, returns))
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    clipped = jnp.clip(values, old_values - clip_range, old_values + clip_range)
    error, error_of_clipped = jnp.square(values - returns), jnp.square(clipped - returns)
    return 0.5 * jnp.maximum(error, error_of_clipped), error_of_clipped > error


def policy_loss(
    advantages: jax.Array,
    stats: TokenStats,
    *,
    surrogate: Surrogate,
    config: LossConfig,
    weights: TokenWeights | None = None,
    ref_log_probs: jax.Array | None = None,
) -> tuple[jax.Array, LossTerms]:
    """Compose the loss of a token from the terms that the config asks for.

    Lₜ = wₜ · (Sₜ + cₜ |log π(oₜ) - log π_old(oₜ)|) + kl_coef · KLₜ - entropy_coef · Hₜ

    with S the surrogate, w and c the weights of the token_weighting; w is 1 and c is 0 without one.
    The entropy enters with its gradient, and only if `entropy_coef` is not 0; a shaped advantage is
    a constant. Where the config names a controller, the coefficient is the coefficient
    `entropy_coef` of the statistics.

    Args:
      advantages: f32[B, N] or f32[B, 1].
      stats: Log-probs, entropies and the mask of the same tokens; `log_probs` and `entropy` have a
        gradient.
      surrogate: The surrogate.
      config: The `loss` section of the config, of which the KL term and the entropy bonus are read
        here.
      weights: From a token_weighting; None for none.
      ref_log_probs: f32[B, N] of the reference; needed with a `kl_coef`.

    Returns:
      (f32[B, N], 0 off the mask; the terms, which are for metrics and have no gradient).

    Raises:
      ValueError: Shapes do not fit, or an array that the config needs is missing.
    """
    mask = stats.mask

    def off_mask_zero(x: jax.Array) -> jax.Array:
        # The inputs are cleaned, not only the result: 0 times the gradient of a NaN is NaN.
        return jnp.where(mask, x, 0)

    loss, clipped = surrogate(advantages, stats)
    terms = LossTerms(loss, clipped, None, weights)
    log_probs = off_mask_zero(stats.log_probs)
    if weights is not None:
        if weights.kl_penalty is not None:
            kl_penalty = log_probs - jax.lax.stop_gradient(off_mask_zero(stats.old_log_probs))
            # sign(0) = 0: a token that has not moved is not pushed, which the derivative of abs
            # would do.
            loss = (
                loss + weights.kl_penalty * jax.lax.stop_gradient(jnp.sign(kl_penalty)) * kl_penalty
            )
        loss = weights.weight * loss
    if config.kl_coef:
        if ref_log_probs is None:
            raise ValueError("policy_loss: loss.kl_coef is set, but ref_log_probs is missing")
        check_shapes("policy_loss", mask=mask, ref_log_probs=ref_log_probs)
        kl = kl_estimate(log_probs, off_mask_zero(ref_log_probs), config.kl_estimator)
        loss, terms = loss + config.kl_coef * kl, terms._replace(kl=kl)
    coefficient = config.entropy_coef
    if isinstance(coefficient, Mapping):
        coefficient = require_coefficient("policy_loss: loss.entropy_coef", stats, ENTROPY_COEF)
    if config.entropy_coef:
        loss = loss - coefficient * off_mask_zero(stats.entropy)
    return loss, jax.lax.stop_gradient(terms)
