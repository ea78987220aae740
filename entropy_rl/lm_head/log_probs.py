"""Log-probability and entropy of tokens, without materializing the logits of a batch.

For logits z of one token, p = softmax(z):

    log π(a) = z_a - logsumexp(z)                  H = logsumexp(z) - Σ_v p_v z_v      (nats)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.lm_head.fused import fused_head, prepare
from entropy_rl.lm_head.vocabulary import HeadWeights


def log_prob_and_entropy_from_logits(
    logits: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute log-prob and entropy from given logits; the reference of `log_prob_and_entropy`.

    Args:
      logits: [..., V].
      ids: int32[...].

    Returns:
      (log_prob f32[...], entropy f32[...] in nats); logits may be -inf.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_prob = jnp.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0]
    p = jnp.exp(log_p)
    entropy = -jnp.sum(
        jnp.where(p > 0, p * jnp.where(p > 0, log_p, 0.0), 0.0), axis=-1
    )  # 0 log 0 = 0
    return log_prob, entropy


def log_prob_and_entropy(
    hidden: jax.Array,
    head_weights: jax.Array | HeadWeights,
    ids: jax.Array,
    mask: jax.Array | None = None,
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Compute log π(id) and H(π) of π = softmax(hidden @ head_weightsᵀ / temperature).

    Only unmasked tokens are processed, in chunks: prompts and padding cost nothing. The backward
    pass recomputes the logits of a chunk, and omits the terms of outputs whose gradient is not
    used, such as an entropy under `stop_gradient`. Logits, log-probs, entropies and the accumulated
    gradient of the weights are float32.

    On a mesh, tokens are sharded over "data" and "fsdp" along the leading axis and the weights as
    P("tensor", "fsdp"). Batch, vocabulary and hidden size are padded to multiples of the mesh axes;
    padding the vocabulary or hidden size copies the weights, so sizes should be divisible. The
    result is that of one device.

    Args:
      hidden: [..., D].
      head_weights: [V, D], in any float type; multiplied in hidden's type. The entries that
        `HeadWeights` marks as unused have probability 0.
      ids: int32[...].
      mask: bool[...]; None for all tokens.
      temperature: Divides the logits.
      chunk_size: Tokens per chunk and device; None to choose by the vocabulary size.
      mesh: Mesh with the axes "data", "fsdp" and "tensor"; None for one device.

    Returns:
      (log_prob f32[...], entropy f32[...] in nats), zero where masked.

    Raises:
      ValueError: If the shapes are inconsistent.
    """
    arrays, spec = prepare(hidden, head_weights, ids, mask, temperature, chunk_size, mesh)
    with jax.named_scope("fused_head"):
        log_prob, entropy = fused_head(*arrays, spec)
    return spec.unpad(log_prob), spec.unpad(entropy)
