"""Rewards and bonuses that require data that a run does not have, as functions of that data.

They are for notebooks and for a transform of your own: domains, clusters of errors, embeddings, or
entropies under a second prompt come from the caller.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.advantages.transform import Transform
from entropy_rl.masked import masked_center, masked_var
from entropy_rl.types import TokenStats

_EPS = 1e-6  # beside a standard deviation


def meds_reward(
    rewards: jax.Array,
    correct: jax.Array,
    cluster_sizes: jax.Array,
    coef: float = 0.1,
    penalize_correct: bool = False,
) -> jax.Array:
    """MEDS: penalize errors by the size of their cluster of similar errors.

        b = c min(log(n + 1), 2)
        r' = r - b where wrong; r / (1 + b) where correct, with `penalize_correct`

    Source: MEDS, https://arxiv.org/abs/2604.11297, and its code, with c = 0.1 and wrong completions
    alone as there. The memory and the clustering by hidden states, which give n, are not
    implemented.

    Args:
      rewards: f32[B].
      correct: bool[B].
      cluster_sizes: int32[B] or f32[B], n, the size of the cluster of each completion.
      coef: c >= 0.
      penalize_correct: Whether correct completions are discounted too.

    Returns:
      f32[B].
    """
    penalty = coef * jnp.minimum(jnp.log1p(cluster_sizes.astype(jnp.float32)), 2)
    of_correct = rewards / (1 + penalty) if penalize_correct else rewards
    return jnp.where(correct, of_correct, rewards - penalty)


def oger_reward(
    rewards: jax.Array,
    correct: jax.Array,
    embeddings: jax.Array,
    offline: jax.Array,
    modulation: jax.Array,
    coef: float,
) -> jax.Array:
    """OGER: reward correct completions for their distance to the trajectories of teachers.

        r' = r + c gᵢ (1 - max_j cos(eᵢ, eⱼ)) where correct

    Partly reconstructed: OGER, https://arxiv.org/abs/2604.18530, rewards the divergence of correct
    completions from offline trajectories in the space of embeddings, modulated by the entropy of
    the model. The form of the product is ours, and neither the modulation g nor c was found, so
    that both must be given. Training on the offline trajectories is not implemented.

    Args:
      rewards: f32[B].
      correct: bool[B].
      embeddings: f32[B, E], of the completions.
      offline: f32[B, M, E], of the M trajectories of teachers for the problem of each
        completion.
      modulation: f32[B], g.
      coef: c.

    Returns:
      f32[B].
    """
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # noqa: E731
    cosine = jnp.einsum("be,bme->bm", unit(embeddings), unit(offline), precision="highest")
    divergence = 1 - jnp.max(cosine, axis=1)
    return rewards + jnp.where(correct, coef * modulation * divergence, 0)


def external_token_weight() -> Transform:
    """Multiply the advantage of a token by a weight of the caller: A' = A ω.

    ω is `TrainBatch.extras["external_weights"]`, f32[B, N]. It is data, so one compiled update
    takes any values.

    Source of this form: SHEAR, https://arxiv.org/abs/2604.23318. Its ω is the largest distance of a
    span with the token to the spans of rows with the opposite outcome, over the mean norm of hidden
    states. How to compute it is not implemented: the ε of its Sinkhorn distance was not found. VGPO
    has such weights too.

    Returns:
      A transform f32[B, 1] or f32[B, N] -> f32[B, N] of scope "token".

    Raises:
      ValueError: When called: there are no weights.
    """

    def weigh(advantages: jax.Array, stats: TokenStats) -> jax.Array:
        if "external_weights" not in stats.extras:
            raise ValueError(
                "external_token_weight: TrainBatch.extras must have 'external_weights', a weight "
                f"for each token, got {sorted(stats.extras)}; `entropy-rl train` has none"
            )
        return advantages * stats.extras["external_weights"]

    return Transform(weigh, "token")


def policy_split_bonus(
    advantages: jax.Array,
    own_entropy: jax.Array,
    other_entropy: jax.Array,
    high: jax.Array,
    mask: jax.Array,
    *,
    group_size: int,
    alpha: float,
    eta_high: float,
    eta_normal: float,
    kappa: float | None,
) -> jax.Array:
    """Policy Split: an entropy bonus in the high-entropy mode, a penalty in the normal mode.

        s = α e_own + (1 - α) e_other,   ψ = η₁ Z(s) in rows of the high mode, -η₂ Z(s) in others
        A' = A + clip(ψ, ±|A| / κ),      Z(s) = (s - mean(s)) / (std(s) + ε) over the tokens of a
        group

    e are entropies of the tokens, or -log π_old, under the prompt of the completion's own mode and
    of the other one.

    Source: Policy Split, https://arxiv.org/abs/2604.11510, and its code, with ε = 1e-6; α, η₁, η₂
    and κ were not published, but for η₂ = 0 in the paper. Its variants of Z and its two prompts
    are not implemented.

    Args:
      advantages: f32[B, 1] or f32[B, N].
      own_entropy: f32[B, N].
      other_entropy: f32[B, N].
      high: bool[B], completions of the high-entropy mode.
      mask: bool[B, N].
      group_size: Completions of a group, all of one mode.
      alpha: α.
      eta_high: η₁.
      eta_normal: η₂.
      kappa: κ > 0; None for no bound.

    Returns:
      f32[B, N].
    """
    mixed = alpha * own_entropy + (1 - alpha) * other_entropy
    in_groups = lambda x: x.reshape(-1, group_size * x.shape[1])  # noqa: E731
    values, counts = in_groups(mixed), in_groups(mask)
    std = jnp.sqrt(masked_var(values, counts, axis=1, ddof=1, keepdims=True))
    z = (masked_center(values, counts, axis=1) / (std + _EPS)).reshape(mixed.shape)
    bonus = jnp.where(high[:, None], eta_high, -eta_normal) * z
    if kappa is not None:
        limit = jnp.abs(advantages) / kappa
        bonus = jnp.clip(bonus, -limit, limit)
    return jnp.where(mask, advantages + bonus, advantages)
