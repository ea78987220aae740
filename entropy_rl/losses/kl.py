"""Estimators of the KL divergence to a reference policy."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from entropy_rl.losses.inputs import MAX_LOG_RATIO, check_shapes

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(log_probs: jax.Array, ref_log_probs: jax.Array, kind: KLEstimator) -> jax.Array:
    """Estimate KL(π ‖ π_ref) from the log-probs of sampled tokens.

    With d = log π_ref(o) - log π(o):

    k1 = -d
    k2 = d² / 2
    k3 = exp(d) - d - 1

    For tokens sampled from π, k1 and k3 are unbiased and k2 is not; k2 and k3 are never negative
    and vary less. Source: http://joschu.net/blog/kl-approx.html.

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
    check_shapes("kl_estimate", log_probs=log_probs, ref_log_probs=ref_log_probs)
    d = jax.lax.stop_gradient(ref_log_probs) - log_probs
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * jnp.square(d)
    if kind == "k3":
        # Only from above: exp must not overflow, while a large negative d is where the KL must act.
        d = jnp.minimum(d, MAX_LOG_RATIO)
        # expm1, as exp(d) - 1 loses all digits of a small d
        return jnp.expm1(d) - d
    raise ValueError(f"kl_estimate: kind: must be one of k1, k2, k3, got {kind!r}")
