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
    turn_rewards: jax.Array | None = None,
) -> jax.Array:
    """Compute the λ-returns of completions, which have their rewards at the last token.

    In an episode some of them may come earlier: those of its turns, at the last token of each.

    Gₜ = rₜ + γ ((1 - λ) Vₜ₊₁ + λ Gₜ₊₁),   V and G of what follows the last token are 0

    with Vₜ the value of the prompt and the tokens before t. The generalized advantage is

    Gₜ - Vₜ = Σ_k (γλ)ᵏ δₜ₊ₖ,   δₜ = rₜ + γ Vₜ₊₁ - Vₜ

    In this form λ = γ = 1 gives the reward itself at every token, without rounding. The value after
    the last token is 0, also where the completion was cut off.

    Source: GAE, https://arxiv.org/abs/1506.02438, Eq. 11-16.

    Args:
      rewards: f32[B, 1], of the whole completion.
      values: f32[B, N].
      mask: bool[B, N], True where a token counts. Other tokens are not read, and those on either
        side of them are consecutive in time.
      gamma: Discount γ.
      lam: λ, one number or f32[B].
      turn_rewards: f32[B, N], the part of `rewards` that comes before the last token; None for
        none. The last token has the rest.

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
    rewards, early = rewards[:, 0], jnp.zeros(mask.shape)
    if turn_rewards is not None:
        check_shapes("lambda_returns", mask=mask, turn_rewards=turn_rewards)
        early = jnp.where(mask, turn_rewards, 0)
        rewards -= early.sum(-1)

    def step(after: tuple, token: tuple[jax.Array, ...]) -> tuple[tuple, jax.Array]:
        later, value_after, return_after = after
        value, live, before_last = token
        reward = jnp.where(later, before_last, rewards + before_last)
        found = reward + gamma * ((1 - lam) * value_after + lam * return_after)
        after = (
            later | live,
            jnp.where(live, value, value_after),
            jnp.where(live, found, return_after),
        )
        return after, jnp.where(live, found, 0)

    zeros = jnp.zeros(rewards.shape)
    tokens = (values.T, mask.T, early.T)
    _, returns = jax.lax.scan(step, (zeros > 0, zeros, zeros), tokens, reverse=True)
    return returns.T
