"""Rewards and weights that require data that a run does not have, as functions of that data.

They are for notebooks and for a transform of your own: clusters of errors, embeddings, or weights
of tokens come from the caller.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.advantages.transform import Transform
from entropy_rl.types import TokenStats


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
