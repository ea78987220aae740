"""`Loss`: the policy-gradient loss as a value, composed of its terms."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.aggregation import Aggregation, aggregation_weights
from entropy_rl.losses.clipping import ppo_clip
from entropy_rl.losses.controller import Controller, join_controllers
from entropy_rl.losses.controllers import ENTROPY_COEF
from entropy_rl.losses.inputs import check_shapes, require_coefficient
from entropy_rl.losses.kl import KLEstimator, kl_estimate
from entropy_rl.losses.surrogate import ClipMasks, Surrogate, as_surrogate
from entropy_rl.losses.token_weights import TokenWeighting, TokenWeights, as_token_weighting
from entropy_rl.types import TokenStats


class LossTerms(NamedTuple):
    """The terms of a `Loss` before they are weighted, for metrics; 0 or False off the mask."""

    clipped: ClipMasks
    kl: jax.Array | None  # f32[B, N]; None without a KL term
    weights: TokenWeights | None  # None without token weights


@dataclasses.dataclass(frozen=True)
class Loss:
    """The policy-gradient loss of each token, and how token losses become one number.

        Lₜ = wₜ · (Sₜ + cₜ |log π(oₜ) - log π_old(oₜ)|) + kl_coef · vₜ KLₜ - entropy_coef · Hₜ

    with S the surrogate, and w, c and v from the token weights; 1, 0 and 1 without them. The
    entropy enters with its gradient; a shaped advantage is a constant.

        loss = Loss(ppo_clip(clip_low=0.2, clip_high=0.28), kl_coef=0.001)
        token_losses, terms = loss(advantages, stats, ref_log_probs=ref_log_probs)

    Attributes:
      surrogate: The surrogate objective; a plain function (advantages, stats) -> (loss, ClipMasks)
        gets the scope "sequence".
      token_weighting: Weights of tokens in the loss; None for 1. A plain function gets the scope
        "batch".
      aggregation: "token-mean", "sequence-mean" or "constant", as in `aggregation_weights`.
      max_tokens: Limit of new tokens; required by the aggregation "constant", which divides by it.
      kl_coef: Weight of the KL divergence to the reference policy; 0 for none.
      kl_estimator: Estimator of that divergence, as in `kl_estimate`.
      entropy_coef: Weight of an entropy bonus; 0 for none. A `Controller` with the coefficient
        `entropy_coef` adapts it.
    """

    surrogate: Surrogate = dataclasses.field(default_factory=lambda: ppo_clip(0.2, 0.28))
    token_weighting: TokenWeighting | None = None
    aggregation: Aggregation = "token-mean"
    max_tokens: int | None = None
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    entropy_coef: float | Controller = 0.0

    def __post_init__(self):
        object.__setattr__(self, "surrogate", as_surrogate(self.surrogate, "Loss.surrogate"))
        if self.token_weighting is not None:
            weighting = as_token_weighting(self.token_weighting, "Loss.token_weighting")
            object.__setattr__(self, "token_weighting", weighting)
        kinds, estimators = get_args(Aggregation), get_args(KLEstimator)
        require(self.aggregation in kinds, "Loss.aggregation", self.aggregation, ", ".join(kinds))
        require(
            self.aggregation != "constant" or self.max_tokens is not None,
            "Loss.max_tokens",
            self.max_tokens,
            "the limit of new tokens with the aggregation 'constant', which divides by it",
        )
        require(0 <= self.kl_coef < math.inf, "Loss.kl_coef", self.kl_coef, "a number >= 0")
        require(
            isinstance(self.entropy_coef, Controller) or math.isfinite(self.entropy_coef),
            "Loss.entropy_coef",
            self.entropy_coef,
            "a finite number or a Controller",
        )
        require(
            self.max_tokens is None or self.max_tokens >= 1,
            "Loss.max_tokens",
            self.max_tokens,
            "None or >= 1",
        )
        require(
            self.kl_estimator in estimators,
            "Loss.kl_estimator",
            self.kl_estimator,
            ", ".join(estimators),
        )
        require(
            self.kl_coef or self.token_weighting is None or not self.token_weighting.weights_kl,
            "Loss.kl_coef",
            self.kl_coef,
            "a number > 0 with token weights of the KL term, which have no effect without it",
        )

    @property
    def controller(self) -> Controller | None:
        """The joint controller of surrogate and entropy bonus; its state is part of `TrainState`.

        None for a loss without one.
        """
        adaptive = isinstance(self.entropy_coef, Controller)
        return join_controllers(
            entropy_coef=self.entropy_coef if adaptive else None,
            surrogate=self.surrogate.controller,
        )

    def aggregation_weights(
        self, mask: jax.Array, *, tokens: jax.Array | int, sequences: jax.Array | int
    ) -> jax.Array:
        """Compute the weights with which token losses are summed, as `aggregation_weights`.

        Args:
          mask: bool[B, N].
          tokens: Tokens of the whole mini-batch that count.
          sequences: Its rows with such a token.

        Returns:
          f32[B, N].
        """
        return aggregation_weights(
            mask,
            self.aggregation,
            tokens=tokens,
            sequences=sequences,
            max_tokens=self.max_tokens,
        )

    def __call__(
        self,
        advantages: jax.Array,
        stats: TokenStats,
        *,
        ref_log_probs: jax.Array | None = None,
        weights: TokenWeights | None = None,
    ) -> tuple[jax.Array, LossTerms]:
        """Compute the loss of each token, to be minimized.

        Args:
          advantages: f32[B, N] or f32[B, 1]; constants.
          stats: Statistics of the same tokens; only `log_probs` and `entropy` have a gradient.
          ref_log_probs: f32[B, N] of the reference policy; required with a `kl_coef`.
          weights: Token weights, where they have been computed before; None to compute them.

        Returns:
          (f32[B, N], 0 off the mask; the terms, without a gradient).

        Raises:
          ValueError: Shapes do not fit, or an array that the loss needs is missing.
        """
        mask = stats.mask

        def off_mask_zero(x: jax.Array) -> jax.Array:
            # The inputs are cleaned, not only the result: 0 times the gradient of a NaN is NaN.
            return jnp.where(mask, x, 0)

        if weights is None and self.token_weighting is not None:
            weights = self.token_weighting(advantages, stats)
        loss, clipped = self.surrogate(advantages, stats)
        terms = LossTerms(clipped, None, weights)
        log_probs = off_mask_zero(stats.log_probs)
        if weights is not None:
            if weights.kl_penalty is not None:
                change = log_probs - jax.lax.stop_gradient(off_mask_zero(stats.old_log_probs))
                # sign(0) = 0: a token that has not moved is not pushed, which the derivative of
                # abs would do.
                sign = jax.lax.stop_gradient(jnp.sign(change))
                loss = loss + weights.kl_penalty * sign * change
            loss = weights.weight * loss
        if self.kl_coef:
            if ref_log_probs is None:
                raise ValueError("Loss: ref_log_probs must be given with a kl_coef, got None")
            check_shapes("Loss", mask=mask, ref_log_probs=ref_log_probs)
            kl = kl_estimate(log_probs, off_mask_zero(ref_log_probs), self.kl_estimator)
            terms = terms._replace(kl=kl)
            if weights is not None and weights.kl_weight is not None:
                kl = weights.kl_weight * kl
            loss = loss + self.kl_coef * kl
        coefficient = self.entropy_coef
        if isinstance(coefficient, Controller):
            coefficient = require_coefficient("Loss.entropy_coef", stats, ENTROPY_COEF)
        if self.entropy_coef:
            loss = loss - coefficient * off_mask_zero(stats.entropy)
        return loss, jax.lax.stop_gradient(terms)
