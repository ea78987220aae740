"""Generalized advantages: the reward compared with what a critic expected, token by token.

What stands before them in a chain makes the rewards, for the critic's targets too. The values are
those from before the first update on a rollout, so the advantages are finished before the gradient
pass.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from entropy_rl.advantages.returns import lambda_returns
from entropy_rl.advantages.transform import Transform
from entropy_rl.types import TokenStats


def gae(gamma: float = 1.0, lam: float = 1.0) -> Transform:
    """Generalized advantage estimation with the values of a critic.

    Aₜ = Σ_k (γλ)ᵏ δₜ₊ₖ,   δₜ = rₜ + γ Vₜ₊₁ - Vₜ

    with Vₜ the value of what stands before token t, and the reward at the last token. γ = λ = 1
    gives Aₜ = R - Vₜ. Source: https://arxiv.org/abs/1506.02438, Eq. 16. The λ of the critic's own
    targets is another setting (`critic.lam`); to have two of them is VC-PPO's decoupled GAE, with
    0.95 here and 1 there, https://arxiv.org/abs/2503.01491.

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
    def advantages_of(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        if stats.values is None:
            raise ValueError(
                f"{who}: needs the values of a critic; there are none in the statistics"
            )
        lengths = jnp.sum(stats.mask, axis=1)
        returns = lambda_returns(
            advantages, stats.values, stats.mask, gamma=gamma, lam=lam(lengths)
        )
        return jnp.where(stats.mask, returns - stats.values, 0)

    return Transform(advantages_of, "group", requires=("values",))


def check_discount(who: str, *, gamma: float, lam: float = 1.0) -> None:
    if not 0 < gamma <= 1:
        raise ValueError(f"{who}: gamma={gamma!r} is not allowed; 0 < gamma <= 1")
    if not 0 <= lam <= 1:
        raise ValueError(f"{who}: lam={lam!r} is not allowed; 0 <= lam <= 1")
