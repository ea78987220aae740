"""Log-probability and entropy of tokens, without ever holding the logits of a whole batch.

For logits z of one token, p = softmax(z):

    log π(a) = z_a - logsumexp(z)                  H = logsumexp(z) - Σ_v p_v z_v      (nats)
    ∂ log π(a)/∂z = onehot(a) - p                  ∂H/∂z = -p (log p + H)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

# Logits of one chunk: 2^23 numbers are 32 MiB, small beside any model and large enough for a GEMM.
_CHUNK_LOGITS = 2**23
_MIN_CHUNK = 256


def log_prob_and_entropy_from_logits(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
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
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.where(p > 0, log_p, 0.0), 0.0), axis=-1)  # 0 log 0 = 0
    return log_prob, entropy


def log_prob_and_entropy(
    hidden: jax.Array,
    head_weights: jax.Array,
    ids: jax.Array,
    mask: jax.Array | None = None,
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Fused head: log π(id) and H(π) of softmax(hidden @ head_weightsᵀ / temperature).

    Tokens are processed in chunks, those that count first, and the loop ends with the last chunk that
    has one: prompts and padding cost nothing. The backward pass recomputes the logits of a chunk.
    Logits, log-probs, entropies and the accumulated gradient of the weights are float32.

    Args:
      hidden: [..., D].
      head_weights: [V, D], in any float type; multiplied in hidden's type.
      ids: int32[...].
      mask: bool[...], True where the token counts; None for everywhere.
      temperature: Divides the logits.
      chunk_size: Tokens per chunk; None chooses by the vocabulary.

    Returns:
      (log_prob f32[...], entropy f32[...]), zero where the mask is False.

    Raises:
      ValueError: If the shapes do not belong together.
    """
    if hidden.shape[:-1] != ids.shape or hidden.shape[-1] != head_weights.shape[-1]:
        raise ValueError(
            f"hidden {hidden.shape}, head_weights {head_weights.shape} and ids {ids.shape} do not fit; "
            "allowed: [..., D], [V, D] and [...]"
        )
    if mask is None:
        mask = jnp.ones(ids.shape, bool)
    if mask.shape != ids.shape:
        raise ValueError(f"mask {mask.shape} must have the shape of ids {ids.shape}")
    if chunk_size is None:
        chunk_size = max(_MIN_CHUNK, _CHUNK_LOGITS // head_weights.shape[0])
    chunk_size = max(1, min(chunk_size, ids.size))
    flat = hidden.reshape(-1, hidden.shape[-1])
    with jax.named_scope("fused_head"):
        log_prob, entropy = _fused(
            flat, head_weights, ids.reshape(-1), mask.reshape(-1), float(temperature), chunk_size
        )
    return log_prob.reshape(ids.shape), entropy.reshape(ids.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused(hidden, head_weights, ids, mask, temperature, chunk_size):
    return _forward(hidden, head_weights, ids, mask, temperature, chunk_size)[0]


def _chunks(mask: jax.Array, chunk_size: int) -> tuple[jax.Array, jax.Array]:
    """Row numbers, live ones first, padded to whole chunks with an out-of-range number; the trip count."""
    size = mask.shape[0]
    order = jnp.argsort(~mask, stable=True)
    order = jnp.where(jnp.arange(size) < mask.sum(), order, size)  # dead rows are neither read nor written
    order = jnp.pad(order, (0, -size % chunk_size), constant_values=size)
    return order, (mask.sum() + chunk_size - 1) // chunk_size


def _chunk_logits(hidden, weights, rows, temperature):
    """The hidden states of some rows and their tempered logits in float32."""
    h = jnp.take(hidden, rows, axis=0, mode="fill", fill_value=0)
    z = jax.lax.dot_general(h, weights, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return h, z / temperature


def _forward(hidden, head_weights, ids, mask, temperature, chunk_size):
    order, trips = _chunks(mask, chunk_size)
    weights = head_weights.astype(hidden.dtype)  # once, not in every chunk

    def body(i, outputs):
        log_probs, entropies, normalizers = outputs
        rows = jax.lax.dynamic_slice_in_dim(order, i * chunk_size, chunk_size)
        _, z = _chunk_logits(hidden, weights, rows, temperature)
        peak = jnp.max(z, axis=-1)
        z -= peak[:, None]  # also for the entropy: Σ p z would cancel against a large logsumexp
        mass = jnp.exp(z)
        total = jnp.sum(mass, axis=-1)
        lse = jnp.log(total)
        chosen = jnp.take_along_axis(z, jnp.take(ids, rows, mode="clip")[:, None], axis=-1)[:, 0]
        entropy = lse - jnp.sum(mass * z, axis=-1) / total
        write = lambda out, value: out.at[rows].set(value, mode="drop")  # noqa: E731
        return write(log_probs, chosen - lse), write(entropies, entropy), write(normalizers, peak + lse)

    zeros = jnp.zeros(ids.shape, jnp.float32)
    log_probs, entropies, normalizers = jax.lax.fori_loop(0, trips, body, (zeros, zeros, zeros))
    return (log_probs, entropies), (hidden, head_weights, ids, order, trips, entropies, normalizers)


def _backward(temperature, chunk_size, residuals, cotangents):
    hidden, head_weights, ids, order, trips, entropies, normalizers = residuals
    g_log_prob, g_entropy = cotangents
    weights = head_weights.astype(hidden.dtype)

    def body(i, grads):
        d_hidden, d_weights = grads
        rows = jax.lax.dynamic_slice_in_dim(order, i * chunk_size, chunk_size)
        h, z = _chunk_logits(hidden, weights, rows, temperature)
        take = lambda x: jnp.take(x, rows, mode="fill", fill_value=0)[:, None]  # noqa: E731
        log_p = z - take(normalizers)
        p = jnp.exp(log_p)
        chosen = jax.lax.broadcasted_iota(jnp.int32, z.shape, 1) == take(ids)
        dz = take(g_log_prob) * (chosen - p) - take(g_entropy) * p * (log_p + take(entropies))
        dz = (dz / temperature).astype(hidden.dtype)
        dh = jax.lax.dot_general(dz, weights, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        # float32: over thousands of chunks a bfloat16 sum drifts.
        dw = jax.lax.dot_general(dz, h, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return d_hidden.at[rows].set(dh.astype(hidden.dtype), mode="drop"), d_weights + dw

    start = (jnp.zeros_like(hidden), jnp.zeros(head_weights.shape, jnp.float32))
    d_hidden, d_weights = jax.lax.fori_loop(0, trips, body, start)
    return d_hidden, d_weights.astype(head_weights.dtype), None, None


_fused.defvjp(_forward, _backward)
