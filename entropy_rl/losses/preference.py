"""Losses on pairs of completions, one of which is preferred (DPO and its relatives).

With the implicit reward r of a completion y to a prompt x, a loss is a function of the margin:

    L = ℓ(r(x, y_chosen) - r(x, y_rejected))

The log-prob of a completion is the sum over its tokens. Losses are means over pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.config.registry import build_named

RewardFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """A loss on pairs: an implicit reward, and a function of the margin between two of them.

    Attributes:
      reward: (log π(y | x), log π_ref(y | x), tokens of y) -> reward; f32[P] each.
      of_margin: (reward of the chosen - reward of the rejected completion) -> loss; f32[P] each.
      needs_reference: Whether the reward reads the reference policy; else its log-probs are 0.
    """

    reward: RewardFn
    of_margin: Callable[[jax.Array], jax.Array]
    needs_reference: bool = True

    def __call__(
        self, log_probs: jax.Array, ref_log_probs: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Compute the loss of each pair.

        Args:
          log_probs: f32[P, 2], of the chosen and the rejected completion, summed over tokens.
          ref_log_probs: f32[P, 2], of the reference policy; 0 without one.
          tokens: [P, 2], the numbers of these tokens.

        Returns:
          (losses f32[P], rewards f32[P, 2]).

        Raises:
          ValueError: The shapes are not those.
        """
        for name, x in (("ref_log_probs", ref_log_probs), ("tokens", tokens)):
            if x.shape != log_probs.shape or x.shape[1:] != (2,):
                raise ValueError(
                    f"PreferenceLoss: {name} must have the shape [P, 2] of log_probs "
                    f"{log_probs.shape}, got {x.shape}"
                )
        rewards = self.reward(log_probs, ref_log_probs, tokens.astype(jnp.float32))
        return self.of_margin(rewards[:, 0] - rewards[:, 1]), rewards


def dpo(beta: float = 0.1) -> PreferenceLoss:
    """Direct preference optimization (arXiv 2305.18290, Eq. 7); `sigmoid` in TRL.

        r = β (log π(y) - log π_ref(y))           ℓ(m) = -log σ(m)

    Args:
      beta: β, the strength of the implicit KL constraint.
    """
    return PreferenceLoss(_log_ratio(_positive("dpo", beta)), _sigmoid_loss)


def cdpo(beta: float = 0.1, label_smoothing: float = 0.1) -> PreferenceLoss:
    """Conservative DPO: a label is wrong with probability ε (Mitchell 2023, "A note on DPO with
    noisy preferences").

        r as in `dpo`           ℓ(m) = -(1 - ε) log σ(m) - ε log σ(-m)

    Args:
      beta: As in `dpo`.
      label_smoothing: ε, at least 0 and below 0.5; 0 is `dpo`.
    """
    smoothing = label_smoothing
    require(0 <= smoothing < 0.5, "cdpo.label_smoothing", smoothing, ">= 0 and < 0.5")

    def of_margin(margin: jax.Array) -> jax.Array:
        return (1 - smoothing) * _sigmoid_loss(margin) + smoothing * _sigmoid_loss(-margin)

    return PreferenceLoss(_log_ratio(_positive("cdpo", beta)), of_margin)


def ipo(beta: float = 0.1) -> PreferenceLoss:
    """Identity preference optimization (arXiv 2310.12036, Eq. 17), with log-ratios per token.

        r = (log π(y) - log π_ref(y)) / |y|           ℓ(m) = (m - 1 / (2β))²

    The mean over the tokens is by word of the authors, as in TRL.

    Args:
      beta: β; the margin is driven to 1 / (2β).
    """
    target = 1 / (2 * _positive("ipo", beta))
    reward = _per_token(_log_ratio(1.0))
    return PreferenceLoss(reward, lambda margin: jnp.square(margin - target))


def dpo_norm(beta: float = 0.1) -> PreferenceLoss:
    """Length-normalized DPO (Tulu 3, arXiv 2411.15124, section 5); `sigmoid_norm` in TRL.

        r = β (log π(y) - log π_ref(y)) / |y|           ℓ(m) = -log σ(m)

    Args:
      beta: β; Tulu 3 uses 5.
    """
    return PreferenceLoss(_per_token(_log_ratio(_positive("dpo_norm", beta))), _sigmoid_loss)


def simpo(beta: float = 2.0, gamma: float = 0.5) -> PreferenceLoss:
    """SimPO, without a reference policy (arXiv 2405.14734, Eq. 6).

        r = β log π(y) / |y|           ℓ(m) = -log σ(m - γ)

    Args:
      beta: β.
      gamma: Target margin γ of the rewards, at least 0.
    """
    require(gamma >= 0, "simpo.gamma", gamma, ">= 0")
    scale = _positive("simpo", beta)
    reward = _per_token(lambda log_probs, ref_log_probs, tokens: scale * log_probs)
    return PreferenceLoss(
        reward, lambda margin: _sigmoid_loss(margin - gamma), needs_reference=False
    )


def build_preference_loss(spec: Mapping[str, Any]) -> PreferenceLoss:
    """Build the loss on pairs that a config names.

        loss: {name: dpo, beta: 0.1}

    Args:
      spec: The name of a loss of `entropy_rl.losses` and its arguments; or `module:function` for
        your own factory of a `PreferenceLoss`.

    Raises:
      ValueError: A name, an argument or a value is wrong; the message starts with its dotted path.
    """
    return build_named(spec, "loss", PreferenceLoss, returns="a PreferenceLoss")


def _sigmoid_loss(margin: jax.Array) -> jax.Array:
    return -jax.nn.log_sigmoid(margin)


def _log_ratio(beta: float) -> RewardFn:
    return lambda log_probs, ref_log_probs, tokens: beta * (log_probs - ref_log_probs)


def _per_token(reward: RewardFn) -> RewardFn:
    return lambda log_probs, ref_log_probs, tokens: (
        reward(log_probs, ref_log_probs, tokens) / jnp.maximum(tokens, 1)
    )


def _positive(who: str, beta: float) -> float:
    require(beta > 0, f"{who}.beta", beta, "> 0")
    return beta
