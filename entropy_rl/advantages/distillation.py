"""On-policy distillation: the log-probs of a teacher as an advantage of each token."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from entropy_rl.advantages.transform import TEACHER, Transform
from entropy_rl.config.checks import require
from entropy_rl.types import TEACHER_LOG_PROBS, TokenStats


def on_policy_distillation(coef: float = 1.0, add: bool = False) -> Transform:
    """Move the policy toward a teacher on the completions that the policy samples itself.

    A'ₜ = β (log π_T(oₜ) - sg(log π(oₜ))), or Aₜ plus that

    On-policy and without a clip, the expectation of A'ₜ ∇ log π(oₜ) over oₜ is -β ∇KL(π ‖ π_T) at
    the state of the token, the reverse KL divergence; later tokens do not count (a discount of 0).
    Sources: arXiv 2306.13649 (GKD, on-policy data and reverse KL), and the per-token form of
    https://thinkingmachines.ai/blog/on-policy-distillation and of prime-rl's `opd`.

    Args:
      coef: β > 0.
      add: Add to the advantage so far. If false, that is replaced: the rewards are only logged.

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope "token". It reads
      `stats.extras["teacher_log_probs"]`, f32[B, N], which the section `teacher` of a config gives.

    Raises:
      ValueError: An argument is out of range, or the log-probs are missing.
    """
    require(0 < coef < math.inf, "on_policy_distillation.coef", coef, "a number > 0")

    def distill(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        if TEACHER_LOG_PROBS not in stats.extras:
            raise ValueError(
                f"on_policy_distillation: stats.extras must have {TEACHER_LOG_PROBS!r}, got "
                f"{[*stats.extras]}"
            )
        difference = stats.extras[TEACHER_LOG_PROBS] - jax.lax.stop_gradient(stats.log_probs)
        difference = coef * jnp.where(stats.mask, difference, 0)
        return advantages + difference if add else difference

    return Transform(distill, "token", requires=(TEACHER,), is_baseline=not add)
