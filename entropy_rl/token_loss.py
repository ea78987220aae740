"""The loss of a token: the advantage shaped by the policy as it is, then the policy loss, then its weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.advantages import Transform, baseline_and_shaping, is_local
from entropy_rl.config import LossConfig
from entropy_rl.losses import LossTerms, policy_loss
from entropy_rl.types import TokenStats


class KnownOfToken(NamedTuple):
    """What the loss of a token needs besides its log-prob and entropy, [B, N] or [B, 1] each."""

    old_log_probs: jax.Array
    old_entropy: jax.Array
    sampler_log_probs: jax.Array
    ref_log_probs: jax.Array | None
    mask: jax.Array
    valid: jax.Array
    weights: jax.Array  # from `token_weights`
    base: jax.Array  # the advantage before the shaping
    shaped: jax.Array | None  # and after; None if it is still to be shaped


class TokenTerms(NamedTuple):
    """What the metrics need of a token; without a gradient."""

    base: jax.Array  # f32[B, N]
    shaped: jax.Array  # f32[B, N]
    loss: LossTerms


TokenLoss = Callable[[jax.Array, jax.Array, KnownOfToken], tuple[jax.Array, TokenTerms]]


def make_token_loss(shaping: Transform, config: LossConfig) -> TokenLoss:
    """Builds `(log_probs f32[B, N], entropy f32[B, N], known) -> (weighted loss f32[B, N], terms)`.

    Args:
      shaping: Of token or row scope, where there are advantages that are still to be shaped.
      config: The `loss` section of the config.

    Returns:
      The function; its sum over all tokens is the loss.
    """

    def token_loss(
        log_probs: jax.Array, entropy: jax.Array, known: KnownOfToken
    ) -> tuple[jax.Array, TokenTerms]:
        shaped = known.shaped
        if shaped is None:
            stats = TokenStats(
                log_probs=log_probs,
                old_log_probs=known.old_log_probs,
                entropy=entropy,
                old_entropy=known.old_entropy,
                mask=known.mask,
                valid=known.valid.any(-1),
            )
            shaped = shaping(known.base, stats)
        base, shaped = (
            jax.lax.stop_gradient(jnp.broadcast_to(a, log_probs.shape)) for a in (known.base, shaped)
        )
        per_token, terms = policy_loss(
            log_probs,
            entropy,
            shaped,
            old_log_probs=known.old_log_probs,
            mask=known.mask,
            config=config,
            sampler_log_probs=known.sampler_log_probs,
            ref_log_probs=known.ref_log_probs,
        )
        return known.weights * per_token, TokenTerms(base, shaped, terms)

    return token_loss


def of_single_tokens(token_loss: TokenLoss) -> Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]:
    """The function of [B, N] as one of [C]: tokens of any rows become rows of one token each."""

    def of_tokens(log_prob: jax.Array, entropy: jax.Array, known: KnownOfToken) -> tuple[jax.Array, Any]:
        columns = jax.tree.map(lambda x: x[:, None], (log_prob, entropy, known))
        return jax.tree.map(lambda x: x[:, 0], token_loss(*columns))

    return of_tokens


def check_fused_loss(advantage: Transform) -> None:
    """Checks that the advantage of a token is known, when its loss is, from this token alone.

    Raises:
      ValueError: If it is not.
    """
    baseline, shaping = baseline_and_shaping(advantage)
    if is_local(baseline, shaping) and shaping.scope != "token":
        raise ValueError(
            f"batching.fused_loss: true is not allowed with a transform of scope {shaping.scope!r}, which "
            "reads other tokens of its row; allowed: the scope 'token', or 'batch', which is finished before"
        )
