"""Reverse KL divergence to a teacher on the student's most likely tokens, in chunks of tokens.

For one token with student p = softmax(z), teacher q, and S the k most likely tokens under p:

    L = Σ_{v∈S} p_v log(p_v / q_v) + p_tail log(p_tail / q_tail)        p_tail = Σ_{v∉S} p_v
    ∂L/∂z_v = p_v (r_v - L)        r_v = log(p_v / q_v) in S, log(p_tail / q_tail) elsewhere

so L = Σ_v p_v r_v. As in `fused_head_loss`, the gradients are computed along with the logits of a
chunk, those of the teacher too, which need not be recomputed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.lm_head.fused import (
    PADDING_LOGIT,
    HeadSpec,
    add_gradients,
    chunk_logits,
    finish_gradients,
    make_chunks,
    prepare,
    put,
    start_gradients,
    take,
)
from entropy_rl.lm_head.layout import HeadLayout
from entropy_rl.lm_head.vocabulary import HeadWeights, resize_head
from entropy_rl.types import DATA_AXES, FSDP_AXIS


def top_k_reverse_kl(
    hidden: jax.Array,
    head_weights: jax.Array | HeadWeights,
    teacher_hidden: jax.Array,
    teacher_head_weights: jax.Array | HeadWeights,
    weights: jax.Array,
    mask: jax.Array | None = None,
    *,
    top_k: int,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Compute Σ_t weights_t L_t, with L_t the reverse KL divergence of a student to a teacher on
    the student's `top_k` most likely tokens and one bucket for all others.

        L = Σ_{v∈S} p_v log(p_v / q_v) + p_tail log(p_tail / q_tail)        p_tail = Σ_{v∉S} p_v

    p is the student, softmax(hidden @ head_weightsᵀ / temperature), q the teacher, likewise, and S
    the `top_k` most likely tokens under p; of equally likely ones the lower ids. By the
    data-processing inequality L <= KL(p ‖ q), with equality if S is the whole vocabulary, and L = 0
    if and only if p and q agree on every bucket. The gradient flows through the probabilities p of
    all buckets; the choice of S is constant. Probabilities of a tail are sums over its tokens, not
    differences to 1.

    Sources: the reverse KL divergence on completions of the student of arXiv 2306.13649 (GKD) and
    arXiv 2306.08543 (MiniLLM), there over the whole vocabulary; a bucket for the tail as in arXiv
    2608.14728 (TA-OPD), there beside the teacher's most likely tokens.

    Only unmasked tokens are processed, in chunks; the logits of both are float32. If
    differentiated, the forward pass also computes the gradients of `hidden` and `head_weights` (the
    latter in float32), which the backward pass scales.

    Args:
      hidden: [..., D], of the student.
      head_weights: [V, D], of the student.
      teacher_hidden: [..., D'], of the teacher at the same tokens; a constant.
      teacher_head_weights: [V, D'], of the teacher; a constant. It may have another number of rows
        if the additional ones are marked as unused (`HeadWeights`).
      weights: f32[...], of the tokens in the sum; constants.
      mask: bool[...]; None for all tokens.
      top_k: k, from 1 to the number of tokens of the vocabulary.
      temperature: Divides the logits of both.
      chunk_size: Tokens per chunk and device; None to choose by the vocabulary size.
      mesh: See `log_prob_and_entropy`.

    Returns:
      (total f32[], L f32[...] in nats, zero where masked). Only the total has a gradient.

    Raises:
      ValueError: If shapes or vocabularies do not fit, or `top_k` is out of range.
    """
    shape = hidden.shape[:-1]
    mask = jnp.ones(shape, bool) if mask is None else mask
    if not teacher_hidden.shape[:-1] == weights.shape == mask.shape == shape:
        raise ValueError(
            f"teacher_hidden, weights, mask: must have shapes [..., D'], [...] and [...] as hidden "
            f"{hidden.shape}, got {teacher_hidden.shape}, {weights.shape} and {mask.shape}"
        )
    head, teacher_head = _one_vocabulary(head_weights, teacher_head_weights)
    tokens = head.shape[0] - sum(end - first for first, end in head.unused)
    if not 1 <= top_k <= tokens:
        raise ValueError(
            f"top_k: must be from 1 to {tokens}, the tokens of the vocabulary, got {top_k}"
        )
    # There is no chosen token: the mask takes the place of its ids.
    arrays, spec = prepare(hidden, head, mask, mask, temperature, chunk_size, mesh)
    of_teacher, _ = prepare(teacher_hidden, teacher_head, mask, mask, temperature, chunk_size, mesh)
    constants = of_teacher.hidden, of_teacher.weights, spec.pad(jnp.where(mask, weights, 0))
    constants = jax.lax.stop_gradient(constants)
    with jax.named_scope("top_k_reverse_kl"):
        total, kl = _divergence(arrays.hidden, arrays.weights, *constants, arrays.mask, top_k, spec)
    return total, jax.lax.stop_gradient(spec.unpad(kl))


def _one_vocabulary(
    student: jax.Array | HeadWeights, teacher: jax.Array | HeadWeights
) -> tuple[HeadWeights, HeadWeights]:
    """Return the two heads with the same number of rows and the same unused ones."""
    rows = max(student.shape[0], teacher.shape[0])
    heads = resize_head(student, rows), resize_head(teacher, rows)
    if heads[0].unused != heads[1].unused:
        raise ValueError(
            f"head_weights, teacher_head_weights: must have the same tokens, got {student.shape[0]}"
            f" and {teacher.shape[0]} rows, unused {heads[0].unused} and {heads[1].unused}"
        )
    return heads


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _divergence(hidden, weights, teacher_hidden, teacher_weights, scale, mask, top_k, spec):
    """Compute (Σ scale · L, L f32[B, ...]) of prepared arrays."""
    arrays = hidden, weights, teacher_hidden, teacher_weights, scale, mask
    return _run(*arrays, top_k, spec, with_gradients=False)[0]


def _forward_rule(hidden, weights, *rest):
    outputs, gradients = _run(hidden, weights, *rest, with_gradients=True)
    return outputs, (*gradients, jnp.zeros((), weights.dtype))


def _backward_rule(top_k, spec, residuals, cotangents):
    d_hidden, d_weights, like_weights = residuals
    scale = cotangents[0]
    d_hidden = (scale * d_hidden.astype(jnp.float32)).astype(d_hidden.dtype)
    return d_hidden, (scale * d_weights).astype(like_weights.dtype), None, None, None, None


_divergence.defvjp(_forward_rule, _backward_rule)


def _run(
    hidden: jax.Array,
    weights: jax.Array,
    teacher_hidden: jax.Array,
    teacher_weights: jax.Array,
    scale: jax.Array,
    mask: jax.Array,
    top_k: int,
    spec: HeadSpec,
    *,
    with_gradients: bool,
):
    """Return ((total, L), gradients of the total or None)."""
    layout, chunk = spec.layout, spec.chunk_size

    def local(hidden, weights, teacher_hidden, teacher_weights, scale, mask):
        shape, padded = mask.shape, weights.shape[1] * layout.size(FSDP_AXIS)

        def flatten(hidden, weights):
            width = hidden.shape[-1]
            weights = layout.gather_weights(weights.astype(hidden.dtype), width)
            return hidden.reshape(-1, width), weights

        flat, weights = flatten(hidden, weights)
        teacher_flat, teacher_weights = flatten(teacher_hidden, teacher_weights)
        scale, mask = scale.reshape(-1), mask.reshape(-1)
        chunks = make_chunks(mask, chunk)

        def body(i, carry):
            values, grads = carry
            rows = chunks.rows(i, chunk)
            h = take(flat, rows)
            z = chunk_logits(h, weights, spec)
            teacher_z = chunk_logits(take(teacher_flat, rows), teacher_weights, spec)
            kl, dz = _chunk_divergence(z, teacher_z, top_k, layout)
            if with_gradients:
                dz = take(scale, rows)[:, None] * dz  # 0 in the padding of the last chunk
                grads = add_gradients(grads, rows, dz, h, weights, spec)
            return put(values, rows, kl), grads

        start = layout.zeros(mask.shape, jnp.float32, *DATA_AXES)
        grads = start_gradients(flat, weights, layout) if with_gradients else None
        kl, grads = jax.lax.fori_loop(0, chunks.trips, body, (start, grads))
        if with_gradients:
            grads = finish_gradients(grads, hidden, padded, layout)
        return (layout.sum_over_tokens(jnp.sum(scale * kl)), kl.reshape(shape)), grads

    tokens = layout.tokens
    specs = ((PartitionSpec(), tokens), (tokens, layout.weights) if with_gradients else None)
    run = layout.run(local, (tokens, layout.weights, tokens, layout.weights, tokens, tokens), specs)
    return run(hidden, weights, teacher_hidden, teacher_weights, scale, mask)


def _chunk_divergence(
    z: jax.Array, teacher_z: jax.Array, top_k: int, layout: HeadLayout
) -> tuple[jax.Array, jax.Array]:
    """Compute L f32[C] and ∂L/∂z f32[C, V'] of a chunk.

    Args:
      z: f32[C, V'], the student's logits of this device's vocab entries.
      teacher_z: f32[C, V'], the teacher's.
      top_k: k.
      layout: The sharding.
    """

    def shift(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return (maximum over the vocabulary f32[C], x minus that)."""
        peak = layout.max_over_vocabulary(jnp.max(x, axis=-1))
        return peak, x - peak[:, None]

    def log_sum(x: jax.Array) -> jax.Array:
        return jnp.log(layout.sum_over_vocabulary(jnp.sum(jnp.exp(x), axis=-1)))

    def log_softmax(z: jax.Array) -> jax.Array:
        _, z = shift(z)
        return z - log_sum(z)[:, None]

    def log_tail(log_p: jax.Array) -> jax.Array:
        # The sum over the tail itself: 1 - Σ p has no digits left where the tail is small. That of
        # an empty tail is finite, and no token reads it.
        peak, log_p = shift(jnp.where(inside, PADDING_LOGIT, log_p))
        return peak + log_sum(log_p)

    inside = _most_likely(z, top_k, layout)
    log_p, log_q = log_softmax(z), log_softmax(teacher_z)
    of_tail = log_tail(log_p) - log_tail(log_q)
    log_ratio = jnp.where(inside, log_p - log_q, of_tail[:, None])
    p = jnp.exp(log_p)
    kl = layout.sum_over_vocabulary(jnp.sum(p * log_ratio, axis=-1))
    return kl, p * (log_ratio - kl[:, None])


def _most_likely(z: jax.Array, top_k: int, layout: HeadLayout) -> jax.Array:
    """Return bool[C, V'], True at the entries among the `top_k` largest of the vocabulary."""
    entries = z.shape[1]
    first = layout.first_vocab_id(entries)
    values, ids = jax.lax.top_k(z, min(top_k, entries))
    # In the order of ids, so that of equal values the lower ids are taken, as on one device.
    values, ids = layout.gather_over_vocabulary((values, first + ids))
    values, places = jax.lax.top_k(values, top_k)
    least, last = values[:, -1:], jnp.take_along_axis(ids, places[:, -1:], axis=1)
    vocab_ids = first + jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
    return (z > least) | ((z == least) & (vocab_ids <= last))
