"""GDPO: several rewards, each standardized within its group before they are added."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from entropy_rl.advantages.baselines import group_normalize, whiten
from entropy_rl.advantages.groups import check_group_size, in_groups
from entropy_rl.advantages.transform import Transform
from entropy_rl.config.checks import require
from entropy_rl.masked import masked_center, masked_var
from entropy_rl.types import REWARD_EXTRA, TokenStats


def gdpo(
    group_size: int,
    reward_weights: dict[str, float],
    eps: float = 1e-4,
    statistics: Literal["sequence", "token"] = "sequence",
) -> Transform:
    """GDPO: standardize each reward within its group, add them, and standardize over the rollout.

    zₖᵢ = (rₖᵢ - mean(rₖ)) / (std(rₖ) + ε) within the group,   sᵢ = Σₖ wₖ zₖᵢ
    Aᵢ = (sᵢ - mean(s)) / (std(s) + ε) over the rollout

    Completions whose rewards add up to the same sum keep different advantages, and a reward of
    large scale does not hide the others. Source: GDPO, https://arxiv.org/abs/2601.05242; ε and the
    statistics over sequences as in TRL. `statistics: token` with ε = 1e-6 is veRL's: the second
    step is `whiten`, over the tokens.

    It replaces the weighted sum that other transforms start from, so it is the first of a chain.
    All deviations are those of a sample.

    Args:
      group_size: Completions per prompt (G), at least 2.
      reward_weights: Weights wₖ of the rewards by label; those of the section `rewards` of a
        config. A reward with weight 0 is left out.
      eps: Added to standard deviations.
      statistics: Whether each sequence or each token counts once in the rollout's mean and standard
        deviation.

    Returns:
      A transform of scope "batch" to f32[B, 1], or f32[B, N] with `statistics: token`. It reads
      `stats.extras["reward/LABEL"]`, f32[B, 1]; its input is not read.

    Raises:
      ValueError: As `group_normalize`; there is no weight other than 0; when called: a reward is
        missing in `stats.extras`.
    """
    check_group_size("gdpo", group_size)
    require(eps >= 0, "gdpo.eps", eps, "a number >= 0")
    require(
        any(reward_weights.values()),
        "gdpo.reward_weights",
        reward_weights,
        "weights by label, not all 0 (section rewards)",
    )
    weights = {f"{REWARD_EXTRA}{label}": w for label, w in reward_weights.items() if w != 0}
    within_group, over_tokens = group_normalize(group_size, eps), whiten()

    def combine(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        in_groups("gdpo", group_size, advantages, stats)
        total = jnp.zeros_like(advantages)
        for name, weight in weights.items():
            if name not in stats.extras:
                raise ValueError(f"gdpo: stats.extras must have {name!r}, got {[*stats.extras]}")
            total += weight * within_group(stats.extras[name], stats)
        if statistics == "token":
            return over_tokens(total, stats)
        counts = stats.has_reward[:, None]
        std = jnp.sqrt(masked_var(total, counts, ddof=1))
        return masked_center(total, counts) / jnp.where(std > 0, std + eps, 1)

    return Transform(combine, "batch", requires=tuple(weights), reads="rewards", is_baseline=True)
