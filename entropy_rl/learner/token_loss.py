"""The loss of a token: the advantage shaped and the token selected by the policy as it is, then
its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl.advantages import Transform, baseline_and_shaping, is_local
from entropy_rl.config.train import LossConfig
from entropy_rl.losses.policy import LossTerms, policy_loss
from entropy_rl.losses.surrogate import Surrogate
from entropy_rl.losses.token_weights import TokenWeighting, TokenWeights
from entropy_rl.types import TokenStats


class KnownOfToken(NamedTuple):
    """What the loss of a token needs besides its log-prob and entropy, [B, N] or [B, 1] each."""

    old_log_probs: jax.Array
    old_entropy: jax.Array
    sampler_log_probs: jax.Array
    ref_log_probs: jax.Array | None
    values: jax.Array | None
    mask: jax.Array
    has_reward: jax.Array
    weights: jax.Array  # from `aggregation_weights`
    base: jax.Array  # the advantage before the shaping
    shaped: jax.Array | None  # and after; None if it is still to be shaped
    selected: (
        TokenWeights | None
    )  # None if it is still to be selected, or if there is no token_weighting
    coefficients: dict[str, jax.Array] | None  # of the memory of the loss, [1, 1] or [B, N] each
    external_weights: jax.Array | None


class TokenTerms(NamedTuple):
    """What the metrics need of a token; without a gradient."""

    base: jax.Array  # f32[B, N]
    shaped: jax.Array  # f32[B, N]
    loss: LossTerms


TokenLoss = Callable[[jax.Array, jax.Array, KnownOfToken], tuple[jax.Array, TokenTerms]]


def make_token_loss(
    shaping: Transform,
    surrogate: Surrogate,
    token_weighting: TokenWeighting | None,
    config: LossConfig,
) -> TokenLoss:
    """Builds `(log_probs f32[B, N], entropy f32[B, N], known) -> (weighted loss f32[B, N], terms)`.

    Args:
      shaping: Of token or row scope, where there are advantages that are still to be shaped.
      surrogate: The surrogate.
      token_weights: Of token or row scope, where there are tokens that are still to be selected;
        None for none.
      config: The `loss` section of the config.

    Returns:
      The function; its sum over all tokens is the loss.
    """

    def token_loss(
        log_probs: jax.Array, entropy: jax.Array, known: KnownOfToken
    ) -> tuple[jax.Array, TokenTerms]:
        stats = TokenStats(
            log_probs=log_probs,
            old_log_probs=known.old_log_probs,
            entropy=entropy,
            old_entropy=known.old_entropy,
            mask=known.mask,
            has_reward=known.has_reward.any(-1),
            sampler_log_probs=known.sampler_log_probs,
            values=known.values,
            coefficients=known.coefficients,
            external_weights=known.external_weights,
        )
        shaped = shaping(known.base, stats) if known.shaped is None else known.shaped
        base, shaped = (
            jax.lax.stop_gradient(jnp.broadcast_to(a, log_probs.shape))
            for a in (known.base, shaped)
        )
        weights = known.selected
        if weights is None and token_weighting is not None:
            weights = token_weighting(shaped, stats)
        per_token, terms = policy_loss(
            shaped,
            stats,
            surrogate=surrogate,
            config=config,
            weights=weights,
            ref_log_probs=known.ref_log_probs,
        )
        return known.weights * per_token, TokenTerms(base, shaped, terms)

    return token_loss


def of_single_tokens(
    token_loss: TokenLoss,
) -> Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]:
    """The function of [B, N] as one of [C]: tokens of any rows become rows of one token each."""

    def of_tokens(
        log_prob: jax.Array, entropy: jax.Array, known: KnownOfToken
    ) -> tuple[jax.Array, Any]:
        columns = jax.tree.map(lambda x: x[:, None], (log_prob, entropy, known))
        return jax.tree.map(lambda x: x[:, 0], token_loss(*columns))

    return of_tokens


def needs_whole_batch(
    baseline: Transform, shaping: Transform, token_weighting: TokenWeighting | None
) -> bool:
    """Whether advantages or weights are finished, after a forward pass, before the gradient pass
    begins.
    """
    return not is_local(baseline, shaping) or (
        token_weighting is not None and token_weighting.scope == "batch"
    )


def check_fused_loss(
    advantage: Transform, surrogate: Surrogate, token_weighting: TokenWeighting | None
) -> None:
    """Checks that the loss of a token is known from this token alone, and from what is finished
    before.

    Raises:
      ValueError: If it is not.
    """
    baseline, shaping = baseline_and_shaping(advantage)
    scopes = {"loss.surrogate": surrogate.scope}
    if not needs_whole_batch(baseline, shaping, token_weighting):
        scopes["a transform"] = shaping.scope
    if token_weighting is not None:
        scopes["loss.token_weights"] = token_weighting.scope
    for what, scope in scopes.items():
        if scope == "sequence":
            raise ValueError(
                f"batching.fused_loss: true is not allowed with {what} of scope {scope!r}, which "
                "reads other "
                "tokens of its sequence; allowed: the scope 'token', or 'batch', which is finished "
                "before"
            )
