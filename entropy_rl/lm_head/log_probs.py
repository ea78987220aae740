"""Log-probability and entropy of tokens, without ever holding the logits of a whole batch.

For logits z of one token, p = softmax(z):

    log π(a) = z_a - logsumexp(z)                  H = logsumexp(z) - Σ_v p_v z_v      (nats)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from entropy_rl.lm_head.fused import fused_head, prepare


def log_prob_and_entropy_from_logits(
    logits: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The plain version, for logits that exist anyway; the reference of `log_prob_and_entropy`.

    Args:
      logits: [..., V].
      ids: int32[...].

    Returns:
      (log_prob f32[...], entropy f32[...]); both are safe where logits are -inf.
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
    head_weights: jax.Array,
    ids: jax.Array,
    mask: jax.Array | None = None,
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Fused head: log π(id) and H(π) of softmax(hidden @ head_weightsᵀ / temperature).

    Tokens are processed in chunks, those that count first, and the loop ends with the last chunk
    that has one: prompts and padding cost nothing. The backward pass recomputes the logits of a
    chunk; an output whose gradient is not used, like an entropy under `stop_gradient`, has no term
    in it. Logits, log-probs, entropies and the accumulated gradient of the weights are float32.

    On a mesh the tokens are split over "data" and "fsdp" by the leading axis and the weights lie as
    P("tensor", "fsdp"). What the mesh does not divide is filled up: the leading axis with rows that
    do not count, the vocabulary with words of no probability, the hidden size with zeros. That
    costs a copy of the weights, so it is better to have a vocabulary that "tensor" divides. The
    result is that of one device.

    Args:
      hidden: [..., D].
      head_weights: [V, D], in any float type; multiplied in hidden's type.
      ids: int32[...].
      mask: bool[...], True where the token counts; None for everywhere.
      temperature: Divides the logits.
      chunk_size: Tokens per chunk, on each device; None chooses by the vocabulary.
      mesh: With the axes "data", "fsdp" and "tensor"; None for one device.

    Returns:
      (log_prob f32[...], entropy f32[...]), zero where the mask is False.

    Raises:
      ValueError: If the shapes do not belong together.
    """
    arrays, spec = prepare(hidden, head_weights, ids, mask, temperature, chunk_size, mesh)
    with jax.named_scope("fused_head"):
        log_prob, entropy = fused_head(*arrays, spec)
    return spec.unpad(log_prob), spec.unpad(entropy)
