"""The loss of a critic."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.losses.inputs import check_shapes


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_range: float,
) -> tuple[jax.Array, jax.Array]:
    """Compute the squared error of a critic, clipped around its old values (PPO).

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
    # The inputs are set to 0 off the mask, as 0 times the gradient of a NaN is NaN.
    values, old_values, returns = (jnp.where(mask, x, 0) for x in (values, old_values, returns))
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    clipped = jnp.clip(values, old_values - clip_range, old_values + clip_range)
    error, error_of_clipped = jnp.square(values - returns), jnp.square(clipped - returns)
    return 0.5 * jnp.maximum(error, error_of_clipped), error_of_clipped > error
