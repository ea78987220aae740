"""Archer: a wider clip range and no KL term for the tokens of high entropy in a response."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.config.checks import require
from entropy_rl.losses.clipping import clipped_loss, ratio_of
from entropy_rl.losses.surrogate import ClipMasks, Surrogate
from entropy_rl.losses.token_weights import TokenWeighting, TokenWeights
from entropy_rl.types import TokenStats


def archer(
    low_entropy_clip: float = 0.2,
    high_entropy_clip: float = 0.5,
    quantile: float = 0.8,
    dual_clip: float | None = 10.0,
) -> Surrogate:
    """Archer: PPO with a clip range by the entropy of a token within its response.

    Lₜ = max(-ρₜ Aₜ, -clip(ρₜ, 1 - εₜ, 1 + εₜ) Aₜ), at most -c Aₜ where Aₜ < 0
    εₜ = ε_high where Hₜ > Q(H), else ε_low

    with H the entropy of the policy that is being updated and Q(H) its 0.8 quantile over the
    tokens of the response. Source: https://arxiv.org/abs/2507.15778, with the values of its code,
    https://github.com/wizard-III/ArcherCodeR (`run_archer_qwen2.5_1.5b_code.sh`). Its KL term (k3)
    has the weight 0.001 for tokens of low entropy and 0 for those of high entropy: set
    `loss.kl_coef: 0.001` and the token weights `low_entropy_kl`.

    Args:
      low_entropy_clip: ε_low, 0 < ε_low < 1.
      high_entropy_clip: ε_high, 0 < ε_high < 1.
      quantile: Level of Q, 0 < quantile < 1.
      dual_clip: c > 1; None for none.

    Returns:
      A surrogate of scope "sequence".

    Raises:
      ValueError: An argument is out of range.
    """
    check_entropy_clip("archer", low_entropy_clip, high_entropy_clip, quantile)
    require(dual_clip is None or dual_clip > 1, "archer.dual_clip", dual_clip, "null or > 1")

    def loss(advantages: jax.Array, stats: TokenStats) -> tuple[jax.Array, ClipMasks]:
        clip = jnp.where(high_entropy(stats, quantile), high_entropy_clip, low_entropy_clip)
        return clipped_loss(ratio_of(stats), advantages, 1 - clip, 1 + clip, dual_clip)

    return Surrogate(loss, "sequence")


def low_entropy_kl(quantile: float = 0.8) -> TokenWeighting:
    """Archer's KL term: none for the tokens of high entropy in a response.

    vₜ = 0 where Hₜ > Q(H), else 1; the loss has vₜ kl_coef KLₜ

    with H and Q as in `archer`. Source: as `archer`.

    Args:
      quantile: Level of Q, 0 < quantile < 1.

    Returns:
      A token weighting of scope "sequence".

    Raises:
      ValueError: The argument is out of range.
    """
    require(0 < quantile < 1, "low_entropy_kl.quantile", quantile, "a number > 0 and < 1")

    def select(advantages: jax.Array, stats: TokenStats) -> TokenWeights:
        kl_weight = (~high_entropy(stats, quantile)).astype(jnp.float32)
        return TokenWeights(jnp.ones_like(advantages), kl_weight=kl_weight)

    return TokenWeighting(select, "sequence", weights_kl=True)


def high_entropy(stats: TokenStats, quantile: float) -> jax.Array:
    """Mask of the tokens whose entropy is above a quantile of their response.

    The threshold is the order statistic of rank ⌊quantile · (n - 1)⌋ from 0. An interpolated
    quantile (`torch.nanquantile`) selects the same tokens: it is below the next order statistic.

    Args:
      stats: Of the tokens; `entropy` is read.
      quantile: Between 0 and 1.

    Returns:
      bool[B, N]; False off the mask.
    """
    ranked = jnp.sort(jnp.where(stats.mask, stats.entropy, jnp.inf), axis=1)
    length = jnp.sum(stats.mask, axis=1, keepdims=True)
    # The factor corrects float32 rounding: 0.6 · 5 is slightly below 3.
    rank = jnp.floor(quantile * jnp.maximum(length - 1, 0).astype(jnp.float32) * (1 + 3e-7))
    threshold = jnp.take_along_axis(ranked, rank.astype(jnp.int32), axis=1)
    return stats.mask & (stats.entropy > threshold)


def check_entropy_clip(
    who: str, low_entropy_clip: float, high_entropy_clip: float, quantile: float
) -> None:
    """Check the clip ranges and the quantile of `archer` and `aspo`.

    Raises:
      ValueError: One is not between 0 and 1.
    """
    arguments = {
        "low_entropy_clip": low_entropy_clip,
        "high_entropy_clip": high_entropy_clip,
        "quantile": quantile,
    }
    for name, value in arguments.items():
        require(0 < value < 1, f"{who}.{name}", value, "a number > 0 and < 1")
