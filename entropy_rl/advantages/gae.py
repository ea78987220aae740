"""Generalized advantage estimation (GAE) with the values of a critic.

The members before it in a chain compute the rewards, also those of the critic's targets. The values
are those from before the first update on a rollout, so the advantages are computed before the
gradient pass.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from entropy_rl.advantages.returns import lambda_returns
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.types import TURN_REWARDS, TokenStats


def gae(gamma: float = 1.0, lam: float = 1.0) -> Transform:
    """Generalized advantage estimation with the values of a critic.

    Aₜ = Σ_k (γλ)ᵏ δₜ₊ₖ,   δₜ = rₜ + γ Vₜ₊₁ - Vₜ

    with Vₜ the value of the prefix before token t, and the reward at the last token. In an episode
    whose environment rewards turns, these rewards are at the last token of each turn. With one
    reward, γ = λ = 1 gives Aₜ = R - Vₜ. Source: https://arxiv.org/abs/1506.02438, Eq. 16. The
    critic's targets have a λ of their own (`critic.lam`); different values, 0.95 here and 1 there,
    are the decoupled GAE of VC-PPO, https://arxiv.org/abs/2503.01491.

    Args:
      gamma: Discount 0 < γ <= 1. In a run it is that of the critic, `critic.gamma`.
      lam: 0 <= λ <= 1; 1 in https://arxiv.org/abs/2506.14758 (appendix B).

    Returns:
      A transform f32[B, 1], the rewards, -> f32[B, N] of scope "group"; 0 at tokens that do not
      count.

    Raises:
      ValueError: An argument is out of range; when called: there are no values, or the input is not
        [B, 1].
    """
    check_discount("gae", gamma=gamma, lam=lam)
    return generalized_advantages("gae", gamma, lambda lengths: lam)


def generalized_advantages(
    who: str, gamma: float, lam: Callable[[jax.Array], float | jax.Array]
) -> Transform:
    """Generalized advantages with a λ that may depend on the length.

    Args:
      who: Name of the factory, for errors.
      gamma: Discount.
      lam: (lengths int32[B]) -> λ, a number or f32[B].

    Returns:
      A transform f32[B, 1] -> f32[B, N] of scope "group" that requires values.
    """

    def advantages_of(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        if stats.values is None:
            raise ValueError(f"{who}: stats.values must be the values of a critic, got None")
        lengths = jnp.sum(stats.mask, axis=1)
        returns = lambda_returns(
            advantages,
            stats.values,
            stats.mask,
            gamma=gamma,
            lam=lam(lengths),
            turn_rewards=stats.extras.get(TURN_REWARDS),
        )
        return jnp.where(stats.mask, returns - stats.values, 0)

    return Transform(advantages_of, "group", requires=("values",), is_baseline=True)


def check_discount(who: str, *, gamma: float, lam: float = 1.0) -> None:
    """Check the discount γ and the λ of the factory `who`.

    Raises:
      ValueError: One is out of range.
    """
    require(0 < gamma <= 1, f"{who}.gamma", gamma, "a number > 0 and <= 1")
    require(0 <= lam <= 1, f"{who}.lam", lam, "a number from 0 to 1")
