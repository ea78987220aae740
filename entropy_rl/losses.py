"""Losses: pure functions of per-token arrays that return per-token values, to be minimised.

`policy_loss` composes the terms and `token_weights` says how token losses become one number:

    tokens, sequences = counts(mask)                     # of the whole mini-batch, before it is split
    loss = Σ token_weights(...) · policy_loss(...)       # the sums of the parts add up to that of the whole

Only the log-probs of the policy that is being updated carry a gradient, and its entropy where it has a
coefficient. Advantages, the old, the sampler's and the reference's log-probs are constants here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.config import LossConfig

# exp(20) = 5e8 is far outside of any clip range, and float32 does not overflow.
_MAX_LOG_RATIO = 20.0


class ClipMasks(NamedTuple):
    """Which tokens the clipping of the surrogate acts on; none of them has a gradient."""

    low: jax.Array  # bool[B, N]; ratio < 1 - ε_low and A < 0
    high: jax.Array  # bool[B, N]; ratio > 1 + ε_high and A > 0
    dual: jax.Array  # bool[B, N]; ratio > c and A < 0


class LossTerms(NamedTuple):
    """The terms of `policy_loss` before they are weighted, for metrics. 0 or False off the mask."""

    surrogate: jax.Array  # f32[B, N]
    log_ratio: jax.Array  # f32[B, N], log_probs - old_log_probs
    clipped: ClipMasks
    kl: jax.Array | None  # f32[B, N]; None without a KL term
    importance_weight: jax.Array | None  # f32[B, N]; None without a cap


def ppo_surrogate(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[jax.Array, ClipMasks]:
    """Clipped surrogate of PPO with two clip ranges, and the dual clip.

    ρₜ = exp(log π(oₜ) - log π_old(oₜ))
    Lₜ = max(-ρₜ Aₜ, -clip(ρₜ, 1 - ε_low, 1 + ε_high) Aₜ)
    Lₜ ← min(Lₜ, -c Aₜ) where Aₜ < 0, with a dual clip

    Source: PPO, Eq. 7 of https://arxiv.org/abs/1707.06347; ε_high > ε_low: DAPO, §3.1 of
    https://arxiv.org/abs/2503.14476; dual clip: https://arxiv.org/abs/1912.09729. The log-ratio
    is clamped to ±20 as in veRL.

    Args:
      log_probs: f32[B, N] of the policy that is being updated.
      old_log_probs: f32[B, N] of the policy before the first update on the rollout.
      advantages: f32[B, N] or f32[B, 1].
      clip_low: ε_low.
      clip_high: ε_high.
      dual_clip: c > 1; None for none.

    Returns:
      (loss f32[B, N], the tokens on which a clip acts).

    Raises:
      ValueError: Shapes do not fit.
    """
    _check_shapes("ppo_surrogate", log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    advantages = jax.lax.stop_gradient(advantages)
    log_ratio = log_probs - jax.lax.stop_gradient(old_log_probs)
    ratio = jnp.exp(jnp.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    loss = jnp.maximum(-ratio * advantages, -jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages)
    negative = advantages < 0
    dual = jnp.zeros_like(ratio, bool)
    if dual_clip is not None:
        dual = negative & (ratio > dual_clip)
        loss = jnp.where(negative, jnp.minimum(loss, -dual_clip * advantages), loss)
    low = negative & (ratio < 1 - clip_low)
    high = (advantages > 0) & (ratio > 1 + clip_high)
    return loss, ClipMasks(low, high, dual)


def kl_estimate(log_probs: jax.Array, ref_log_probs: jax.Array, kind: Literal["k1", "k2", "k3"]) -> jax.Array:
    """Estimate KL(π ‖ π_ref) from the log-probs of sampled tokens.

    With d = log π_ref(o) - log π(o):

    k1 = -d
    k2 = d² / 2
    k3 = exp(d) - d - 1

    For tokens sampled from π, k1 and k3 are unbiased and k2 is not; k2 and k3 are never negative and vary
    less. Source: http://joschu.net/blog/kl-approx.html.

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
    _check_shapes("kl_estimate", log_probs=log_probs, ref_log_probs=ref_log_probs)
    d = jax.lax.stop_gradient(ref_log_probs) - log_probs
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * jnp.square(d)
    if kind == "k3":
        # Only from above: exp must not overflow, while a large negative d is where the KL must act.
        d = jnp.minimum(d, _MAX_LOG_RATIO)
        # expm1, as exp(d) - 1 loses all digits of a small d
        return jnp.expm1(d) - d
    raise ValueError(f"kl_estimate: kind={kind!r} is not allowed; allowed: k1, k2, k3")


def importance_weight(old_log_probs: jax.Array, sampler_log_probs: jax.Array, cap: float) -> jax.Array:
    """Truncated importance weight between the trainer's old policy and the sampler.

    wₜ = min(exp(log π_old(oₜ) - log π_sampler(oₜ)), C), a constant factor of the surrogate.

    It corrects for a sampler whose numbers are not quite those of the trainer. Source: Token-TIS,
    https://fengyao.notion.site/off-policy-rl; C = 2 in veRL and slime.

    Args:
      old_log_probs: f32[B, N], by the trainer.
      sampler_log_probs: f32[B, N], as recorded while sampling.
      cap: C.

    Returns:
      f32[B, N].

    Raises:
      ValueError: Shapes differ.
    """
    _check_shapes("importance_weight", old_log_probs=old_log_probs, sampler_log_probs=sampler_log_probs)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(old_log_probs - sampler_log_probs), cap))


def counts(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Count what a loss is averaged over.

    Args:
      mask: bool[B, N], of the whole mini-batch.

    Returns:
      (tokens int32[], sequences int32[]); a row without a token is no sequence.
    """
    return jnp.sum(mask, dtype=jnp.int32), jnp.sum(jnp.any(mask, axis=1), dtype=jnp.int32)


def token_weights(
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

    `tokens` and `sequences` are those of the whole mini-batch also when `mask` is a part of it. So the
    sums over the parts add up to that of the whole, and nothing is divided afterwards.

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
        raise ValueError(f"token_weights: mask has shape {mask.shape}; expected [B, N]")
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
        f"token_weights: aggregation={aggregation!r} is not allowed; "
        "allowed: token-mean, sequence-mean, constant"
    )


def policy_loss(
    log_probs: jax.Array,
    entropy: jax.Array,
    advantages: jax.Array,
    *,
    old_log_probs: jax.Array,
    mask: jax.Array,
    config: LossConfig,
    sampler_log_probs: jax.Array | None = None,
    ref_log_probs: jax.Array | None = None,
) -> tuple[jax.Array, LossTerms]:
    """Compose the loss of a token from the terms that the config asks for.

    Lₜ = wₜ · PPOₜ + kl_coef · KLₜ - entropy_coef · Hₜ

    w is 1 without an `importance_cap`. The entropy enters with its gradient, and only if `entropy_coef`
    is not 0; a shaped advantage is a constant.

    Args:
      log_probs: f32[B, N] of the policy that is being updated.
      entropy: f32[B, N] of it, nats.
      advantages: f32[B, N] or f32[B, 1].
      old_log_probs: f32[B, N], denominator of the ratio.
      mask: bool[B, N]; True for the tokens in the loss.
      config: The `loss` section of the config.
      sampler_log_probs: f32[B, N] as recorded while sampling; needed with an `importance_cap`.
      ref_log_probs: f32[B, N] of the reference; needed with a `kl_coef`.

    Returns:
      (f32[B, N], 0 off the mask; the terms, which are for metrics and have no gradient).

    Raises:
      ValueError: Shapes do not fit, or an array that the config needs is missing.
    """
    optional = {"sampler_log_probs": sampler_log_probs, "ref_log_probs": ref_log_probs}
    _check_shapes(
        "policy_loss",
        log_probs=log_probs,
        entropy=entropy,
        advantages=advantages,
        old_log_probs=old_log_probs,
        mask=mask,
        **{name: array for name, array in optional.items() if array is not None},
    )

    def off_mask_zero(x: jax.Array) -> jax.Array:
        return jnp.where(mask, x, 0)

    # The inputs are cleaned, not only the result: 0 times the gradient of a NaN is NaN.
    log_probs, old_log_probs = off_mask_zero(log_probs), off_mask_zero(old_log_probs)
    advantages = off_mask_zero(advantages)
    surrogate, clipped = ppo_surrogate(
        log_probs,
        old_log_probs,
        advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
    )
    loss = surrogate
    weight = kl = None
    if config.importance_cap is not None:
        sampler_log_probs = _required(sampler_log_probs, "loss.importance_cap", "sampler_log_probs")
        weight = importance_weight(old_log_probs, off_mask_zero(sampler_log_probs), config.importance_cap)
        weight = off_mask_zero(weight)
        loss = weight * loss
    if config.kl_coef:
        ref_log_probs = _required(ref_log_probs, "loss.kl_coef", "ref_log_probs")
        kl = kl_estimate(log_probs, off_mask_zero(ref_log_probs), config.kl_estimator)
        loss = loss + config.kl_coef * kl
    if config.entropy_coef:
        loss = loss - config.entropy_coef * off_mask_zero(entropy)
    terms = LossTerms(surrogate, log_probs - old_log_probs, clipped, kl, weight)
    return loss, jax.lax.stop_gradient(terms)


def _required(array: jax.Array | None, field: str, name: str) -> jax.Array:
    if array is None:
        raise ValueError(f"policy_loss: {field} is set, but {name} is missing")
    return array


def _check_shapes(who: str, **arrays: jax.Array) -> None:
    """Raise unless the first array is [B, N] and the others have its shape; `advantages` may be [B, 1]."""
    (first, reference), *others = arrays.items()
    if reference.ndim != 2:
        raise ValueError(f"{who}: {first} has shape {reference.shape}; expected [B, N]")
    for name, array in others:
        allowed = [reference.shape]
        if name == "advantages":
            allowed.append((reference.shape[0], 1))
        if array.shape not in allowed:
            raise ValueError(
                f"{who}: {name} of shape {array.shape} does not fit {first} of shape {reference.shape}; "
                f"expected {' or '.join(map(str, allowed))}"
            )
