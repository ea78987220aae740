"""Policy Split: an entropy bonus in one of two modes of a policy, which differ by their prompts."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from entropy_rl.advantages.groups import check_group_size
from entropy_rl.advantages.transform import OTHER_PROMPT, Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_center, masked_var
from entropy_rl.types import OTHER_ENTROPY, OTHER_LOG_PROBS, SOURCE_EXTRA, TokenStats

_EPS = 1e-6  # beside a standard deviation


def policy_split(
    group_size: int,
    alpha: float,
    eta_high: float,
    eta_normal: float = 0.0,
    kappa: float | None = None,
    estimate: Literal["log_prob", "entropy"] = "log_prob",
    high: str = "high_entropy",
) -> Transform:
    """Policy Split: an entropy bonus in the high-entropy mode, a penalty in the normal mode.

        s = α e + (1 - α) e',   ψ = η₁ Z(s) in rows of the high-entropy mode, -η₂ Z(s) in others
        A' = A + clip(ψ, ±|A| / κ),   Z(s) = (s - mean(s)) / (std(s) + ε) over the tokens of a group

    The modes are the two prompts of a problem, whose completions are two groups. e and e' are
    -log π_old of a token, or the entropy there, under the prompt of the completion's own mode and
    of the other one, before the first update on a rollout.

    Source: Policy Split, https://arxiv.org/abs/2604.11510, and its code, with ε = 1e-6; α, η₁, η₂
    and κ were not published, but for η₂ = 0 in the paper, whose normal mode is plain GRPO. A
    completion is trained on under its own prompt only. Variants of Z are not implemented: without
    the division, without tokens of low entropy, or of correct completions only.

    Args:
      group_size: Completions per prompt (G), at least 2.
      alpha: 0 <= α <= 1.
      eta_high: η₁ >= 0.
      eta_normal: η₂ >= 0.
      kappa: κ > 0; None for no bound.
      estimate: Whether e is -log π_old of the sampled token, or the entropy.
      high: The source of the problems with the prompt of the high-entropy mode.

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope "group", to be chained after a
      baseline. It reads the extras of "other_prompt" and `source/HIGH`.

    Raises:
      ValueError: An argument is out of range; when called: an extra is missing.
    """
    check_group_size("policy_split", group_size)
    require(0 <= alpha <= 1, "policy_split.alpha", alpha, "a number from 0 to 1")
    for name, value in (("eta_high", eta_high), ("eta_normal", eta_normal)):
        require(0 <= value < math.inf, f"policy_split.{name}", value, "a number >= 0")
    acts = eta_high > 0 or eta_normal > 0
    require(acts, "policy_split.eta_high", eta_high, "> 0 where eta_normal is 0")
    require(kappa is None or 0 < kappa < math.inf, "policy_split.kappa", kappa, "null or > 0")
    require(bool(high), "policy_split.high", high, "the name of a source of problems")
    source = f"{SOURCE_EXTRA}{high}"
    sign, others = (-1, OTHER_LOG_PROBS) if estimate == "log_prob" else (1, OTHER_ENTROPY)

    def add(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        for name in (others, source):
            if name not in stats.extras:
                raise ValueError(
                    f"policy_split: stats.extras must have {name!r}, got {[*stats.extras]}"
                )
        own = stats.old_log_probs if estimate == "log_prob" else stats.old_entropy
        mixed = sign * (alpha * own + (1 - alpha) * stats.extras[others])
        in_groups = lambda x: x.reshape(-1, group_size * x.shape[1])  # noqa: E731
        values, counts = in_groups(mixed), in_groups(stats.mask)
        std = jnp.sqrt(masked_var(values, counts, axis=1, ddof=1, keepdims=True))
        z = (masked_center(values, counts, axis=1) / (std + _EPS)).reshape(mixed.shape)
        bonus = jnp.where(stats.extras[source] > 0, eta_high, -eta_normal) * z
        if kappa is not None:
            limit = jnp.abs(advantages) / kappa
            bonus = jnp.clip(bonus, -limit, limit)
        return jnp.where(stats.mask, advantages + bonus, advantages)

    return Transform(add, "group", requires=(OTHER_PROMPT, source), reads="advantages")
