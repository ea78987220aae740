"""λ-returns: the targets of a critic, and the returns behind generalized advantages."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.losses.inputs import check_shapes


def lambda_returns(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: float = 1.0,
    lam: float | jax.Array = 1.0,
) -> jax.Array:
    """Compute the λ-returns of completions that have one reward, at their last token.

    Gₜ = rₜ + γ ((1 - λ) Vₜ₊₁ + λ Gₜ₊₁),   V and G of what follows the last token are 0

    with Vₜ the value of the prompt and the tokens before t. The generalized advantage is

    Gₜ - Vₜ = Σ_k (γλ)ᵏ δₜ₊ₖ,   δₜ = rₜ + γ Vₜ₊₁ - Vₜ

    In this form λ = γ = 1 gives the reward itself at every token, without rounding. The value after
    the last token is 0, also where the completion was cut off.

    Source: GAE, https://arxiv.org/abs/1506.02438, Eq. 11-16.

    Args:
      rewards: f32[B, 1].
      values: f32[B, N].
      mask: bool[B, N], True where a token counts. Other tokens are not read, and those on either
        side of them are consecutive in time.
      gamma: Discount γ.
      lam: λ, one number or f32[B].

    Returns:
      f32[B, N]; 0 off the mask.

    Raises:
      ValueError: Shapes do not fit.
    """
    check_shapes("lambda_returns", mask=mask, values=values)
    if rewards.shape != (mask.shape[0], 1):
        raise ValueError(
            f"lambda_returns: rewards: must have shape {(mask.shape[0], 1)}, one for each row, got "
            f"{rewards.shape}"
        )
    rewards = rewards[:, 0]

    def step(after: tuple, token: tuple[jax.Array, jax.Array]) -> tuple[tuple, jax.Array]:
        later, value_after, return_after = after
        value, live = token
        reward = jnp.where(later, 0, rewards)
        found = reward + gamma * ((1 - lam) * value_after + lam * return_after)
        after = (
            later | live,
            jnp.where(live, value, value_after),
            jnp.where(live, found, return_after),
        )
        return after, jnp.where(live, found, 0)

    zeros = jnp.zeros(rewards.shape)
    _, returns = jax.lax.scan(step, (zeros > 0, zeros, zeros), (values.T, mask.T), reverse=True)
    return returns.T
