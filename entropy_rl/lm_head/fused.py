"""Chunked LM head fused with log-softmax and entropy, with a custom gradient.

For logits z of one token, p = softmax(z):

    log π(a) = z_a - logsumexp(z)                  H = logsumexp(z) - Σ_v p_v z_v      (nats)
    ∂ log π(a)/∂z = onehot(a) - p                  ∂H/∂z = -p (log p + H)

The public function is `log_prob_and_entropy` in `entropy_rl/lm_head/log_probs.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh

from entropy_rl.lm_head.layout import HeadLayout, pad_axis
from entropy_rl.lm_head.vocabulary import HeadWeights, Ranges, is_unused, split_head
from entropy_rl.precision import product_precision
from entropy_rl.types import DATA_AXES, FSDP_AXIS, TENSOR_AXIS

# Logits of one chunk: 2^21 numbers are 8 MiB, small compared to any model and large enough for a
# GEMM. CPU-seconds for values and gradients, D = 256, float32, 2 cores of an AMD EPYC, minimum of
# several runs, ±10%:
#
#     tokens per chunk             64     128    256    512    1024
#     V = 64,     16384 tokens     0.063  0.053  0.045  0.042  0.042
#     V = 8192,    2048 tokens     0.60   0.54   0.51   0.52   0.60
#     V = 32768,   1024 tokens     1.29   1.19   1.15   1.18   1.03
#     V = 151936,   512 tokens     3.73   2.67   2.71   2.40   -
#
# It is flat from 128 on. The minimum chunk size is higher, because each chunk reads and writes the
# whole gradient of the weights, which costs more on accelerators (higher FLOPs per byte).
_CHUNK_LOGITS = 2**21
_MIN_CHUNK = 256

# Rows of the weights' gradient per product on CPUs, see `_add_product`. CPU-seconds of
# eight chunks of 256 tokens, 2 cores of an AMD EPYC, median of four runs:
#
#     rows per product               2048   4096   8192   16384   all
#     V = 49152,  D = 576, float32   1.55   1.53   1.54   1.65    1.66
#     V = 151936, D = 896, float32   6.75   6.76   6.69   7.06    6.16
_PRODUCT_BLOCK = 8192

# Logit of vocabulary entries that are padding or no token. Finite, as 0 · inf would be NaN.
PADDING_LOGIT = -1e30


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """Static arguments of a fused head.

    Attributes:
      temperature: Divides the logits.
      chunk_size: Tokens per chunk.
      vocab_size: Vocabulary size without padding.
      shape: Shape of the ids before padding.
      layout: Sharding of the arrays.
      unused: Ranges of ids that are no token.
    """

    temperature: float
    chunk_size: int
    vocab_size: int
    shape: tuple[int, ...]
    layout: HeadLayout
    unused: Ranges = ()

    def pad(self, x: jax.Array) -> jax.Array:
        """Pad the leading axis of an array [*shape, ...] to a multiple of the data axes."""
        x = x if self.shape else x[None]
        return pad_axis(x, 0, self.layout.size(*DATA_AXES))

    def unpad(self, x: jax.Array) -> jax.Array:
        """Invert `pad`."""
        return x[: self.shape[0]] if self.shape else x[0]


class HeadArrays(NamedTuple):
    """Arrays of a call, padded to multiples of the mesh axes."""

    hidden: jax.Array  # [B, ..., D]
    weights: jax.Array  # [V, D]
    ids: jax.Array  # int32[B, ...]
    mask: jax.Array  # bool[B, ...]


def prepare(
    hidden: jax.Array,
    head_weights: jax.Array | HeadWeights,
    ids: jax.Array,
    mask: jax.Array | None,
    temperature: float,
    chunk_size: int | None,
    mesh: Mesh | None,
) -> tuple[HeadArrays, HeadSpec]:
    """Check the arguments of a fused head and pad batch, vocab and hidden size to multiples of
    the mesh axes.

    Padding rows are masked; entries of the vocabulary that are padding or no token have
    probability 0.

    Raises:
      ValueError: If the shapes are inconsistent.
    """
    head_weights, unused = split_head(head_weights)
    if hidden.shape[:-1] != ids.shape or hidden.shape[-1] != head_weights.shape[-1]:
        raise ValueError(
            "hidden, head_weights, ids: must have shapes [..., D], [V, D] and [...], got "
            f"{hidden.shape}, {head_weights.shape} and {ids.shape}"
        )
    if mask is None:
        mask = jnp.ones(ids.shape, bool)
    if mask.shape != ids.shape:
        raise ValueError(f"mask: must have the shape of ids {ids.shape}, got {mask.shape}")
    layout, (vocab_size, _) = HeadLayout(mesh), head_weights.shape
    parts = layout.size(TENSOR_AXIS)
    if chunk_size is None:
        chunk_size = max(_MIN_CHUNK, _CHUNK_LOGITS * parts // vocab_size)
    shards = layout.size(*DATA_AXES)
    tokens = math.prod(ids.shape[1:]) * -(-(ids.shape or (1,))[0] // shards)
    chunk_size = max(1, min(chunk_size, tokens))
    spec = HeadSpec(float(temperature), chunk_size, vocab_size, ids.shape, layout, unused)
    weights = pad_axis(pad_axis(head_weights, 0, parts), 1, layout.size(FSDP_AXIS))
    return HeadArrays(spec.pad(hidden), weights, spec.pad(ids), spec.pad(mask)), spec


class Chunks(NamedTuple):
    """Unmasked tokens, in chunks."""

    # int32[chunks * chunk_size]: indices of unmasked tokens, followed by out-of-range indices
    order: jax.Array
    trips: jax.Array  # int32[], number of non-empty chunks

    def rows(self, i: jax.Array, chunk_size: int) -> jax.Array:
        """Return the token indices of a chunk."""
        return jax.lax.dynamic_slice_in_dim(self.order, i * chunk_size, chunk_size)


def make_chunks(mask: jax.Array, chunk_size: int) -> Chunks:
    """Group the unmasked tokens of a flat mask into chunks."""
    size = mask.shape[0]
    order = jnp.argsort(~mask, stable=True)
    order = jnp.where(jnp.arange(size) < mask.sum(), order, size)
    order = jnp.pad(order, (0, -size % chunk_size), constant_values=size)
    return Chunks(order, (mask.sum() + chunk_size - 1) // chunk_size)


def take(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Gather rows of a flat array; zeros for out-of-range indices."""
    return jnp.take(x, rows, axis=0, mode="fill", fill_value=0)


def put(x: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    """Scatter rows into a flat array; out-of-range indices are dropped."""
    return x.at[rows].set(values, mode="drop")


def chunk_logits(h: jax.Array, weights: jax.Array, spec: HeadSpec) -> jax.Array:
    """Compute the tempered logits f32[C, V'] of a chunk, for this device's vocab entries."""
    z = _product(h, weights, 1, 1)
    z = z / spec.temperature
    entries = weights.shape[0]
    padded = entries * spec.layout.size(TENSOR_AXIS)
    unused = spec.unused
    if padded > spec.vocab_size:
        unused += ((spec.vocab_size, padded),)
    if unused:
        first = spec.layout.first_vocab_id(entries)
        vocab_ids = first + jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
        z = jnp.where(is_unused(vocab_ids, unused), PADDING_LOGIT, z)
    return z


class ChunkValues(NamedTuple):
    """Per-token outputs of a chunk."""

    log_prob: jax.Array  # f32[C]
    entropy: jax.Array  # f32[C]
    normalizer: jax.Array  # f32[C], logsumexp of the logits


def chunk_values(z: jax.Array, ids: jax.Array, spec: HeadSpec) -> ChunkValues:
    """Compute log-prob, entropy and normalizer over the whole vocabulary.

    Args:
      z: f32[C, V'], logits of this device's vocab entries.
      ids: int32[C].
      spec: The head.
    """
    layout, entries = spec.layout, z.shape[1]
    peak = layout.max_over_vocabulary(jnp.max(z, axis=-1))
    z = z - peak[:, None]  # also for the entropy: Σ p z would cancel against a large logsumexp
    mass = jnp.exp(z)
    local_ids = ids - layout.first_vocab_id(entries)
    chosen = jnp.take_along_axis(z, jnp.clip(local_ids, 0, entries - 1)[:, None], axis=-1)[:, 0]
    chosen = jnp.where((local_ids >= 0) & (local_ids < entries), chosen, 0)
    total, weighted, chosen = layout.sum_over_vocabulary(
        (jnp.sum(mass, axis=-1), jnp.sum(mass * z, axis=-1), chosen)
    )
    lse = jnp.log(total)
    return ChunkValues(chosen - lse, lse - weighted / total, peak + lse)


def gradient_of_logits(
    z: jax.Array,
    ids: jax.Array,
    normalizer: jax.Array,
    entropy: jax.Array | None,
    g_log_prob: jax.Array | None,
    g_entropy: jax.Array | None,
    spec: HeadSpec,
) -> jax.Array:
    """Compute the gradient of Σ (g_log_prob · log π + g_entropy · H) of a chunk with respect to
    its tempered logits.

    Args:
      z: f32[C, V'], logits of this device's vocab entries.
      ids: int32[C].
      normalizer: f32[C].
      entropy: f32[C]; only needed with g_entropy.
      g_log_prob: f32[C]; None for zero, which skips the term.
      g_entropy: f32[C]; None for zero, which skips the term.
      spec: The head.

    Returns:
      f32[C, V'].
    """
    log_p = z - normalizer[:, None]
    p = jnp.exp(log_p)
    dz = jnp.zeros_like(p)
    if g_log_prob is not None:
        first = spec.layout.first_vocab_id(z.shape[1])
        vocab_ids = first + jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
        dz = g_log_prob[:, None] * ((vocab_ids == ids[:, None]) - p)
        if spec.unused:  # its logit is a constant
            dz = jnp.where(is_unused(vocab_ids, spec.unused), 0, dz)
    if g_entropy is not None:
        dz = dz - g_entropy[:, None] * p * (log_p + entropy[:, None])
    return dz


class HeadGradients(NamedTuple):
    """A device's gradients, completed chunk by chunk."""

    hidden: jax.Array  # [B', D], of flat hidden states
    weights: jax.Array  # f32[V', D]: a bfloat16 sum over thousands of chunks loses precision


def start_gradients(hidden: jax.Array, weights: jax.Array, layout: HeadLayout) -> HeadGradients:
    """Allocate zeros for the gradients of flat hidden states and of the weights.

    The gradient of a hidden state is written once; it is float32 only if it is summed over vocab
    shards.
    """
    dtype = jnp.float32 if layout.split(TENSOR_AXIS) else hidden.dtype
    axes = (*DATA_AXES, TENSOR_AXIS)
    return HeadGradients(
        layout.zeros(hidden.shape, dtype, *axes), layout.zeros(weights.shape, jnp.float32, *axes)
    )


def add_gradients(
    grads: HeadGradients,
    rows: jax.Array,
    dz: jax.Array,
    h: jax.Array,
    weights: jax.Array,
    spec: HeadSpec,
) -> HeadGradients:
    """Add what the gradient of a chunk's tempered logits contributes.

    Args:
      grads: Gradients of the chunks before.
      rows: int32[C], indices of the chunk's tokens.
      dz: f32[C, V'].
      h: [C, D], hidden states of the tokens.
      weights: [V', D].
      spec: The head.
    """
    dz = (dz / spec.temperature).astype(h.dtype)
    dh = _product(dz, weights, 1, 0)
    return HeadGradients(
        put(grads.hidden, rows, dh.astype(grads.hidden.dtype)),
        _add_product(grads.weights, dz, h),
    )


def _product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """Sum x y over an axis of each of two matrices, in float32."""
    return jax.lax.dot_general(
        x,
        y,
        (((x_axis,), (y_axis,)), ((), ())),
        precision=product_precision(x.dtype),
        preferred_element_type=jnp.float32,
    )


def _add_product(total: jax.Array, dz: jax.Array, h: jax.Array) -> jax.Array:
    """Compute total + dzᵀ h, f32[V', D].

    On CPUs the product is computed a block of the vocabulary at a time, with the same numbers:
    XLA's CPU compiler writes a product to memory before it is added, which would take as much
    memory as the whole gradient. On accelerators the addition is part of the product.
    """

    def add(total: jax.Array, dz: jax.Array, h: jax.Array) -> jax.Array:
        return total + _product(dz, h, 0, 0)

    blocks, rest = divmod(total.shape[0], _PRODUCT_BLOCK)

    def add_blocks(total: jax.Array, dz: jax.Array, h: jax.Array) -> jax.Array:
        def add_block(total: jax.Array, first: jax.Array | int, size: int) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(total, first, size)
            part = add(part, jax.lax.dynamic_slice_in_dim(dz, first, size, axis=1), h)
            return jax.lax.dynamic_update_slice_in_dim(total, part, first, axis=0)

        total = jax.lax.fori_loop(
            0,
            blocks,
            lambda i, total: add_block(total, i * _PRODUCT_BLOCK, _PRODUCT_BLOCK),
            total,
        )
        return add_block(total, blocks * _PRODUCT_BLOCK, rest) if rest else total

    if blocks + bool(rest) <= 1:
        return add(total, dz, h)
    return jax.lax.platform_dependent(total, dz, h, cpu=add_blocks, default=add)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused_head(
    hidden: jax.Array, weights: jax.Array, ids: jax.Array, mask: jax.Array, spec: HeadSpec
) -> tuple[jax.Array, jax.Array]:
    """Compute (log π(id) f32[B, ...], H f32[B, ...]) of prepared arrays."""
    values = _forward(hidden, weights, ids, mask, spec)
    return values.log_prob, values.entropy


def _forward(hidden, weights, ids, mask, spec) -> ChunkValues:
    layout, chunk = spec.layout, spec.chunk_size

    def local(hidden, weights, ids, mask):
        shape, width = ids.shape, hidden.shape[-1]
        flat, flat_ids = hidden.reshape(-1, width), ids.reshape(-1)
        weights = layout.gather_weights(
            weights.astype(hidden.dtype), width
        )  # once, not in every chunk
        chunks = make_chunks(mask.reshape(-1), chunk)

        def body(i, outputs):
            rows = chunks.rows(i, chunk)
            values = chunk_values(
                chunk_logits(take(flat, rows), weights, spec), take(flat_ids, rows), spec
            )
            return jax.tree.map(lambda out, value: put(out, rows, value), outputs, values)

        zeros = layout.zeros(flat_ids.shape, jnp.float32, *DATA_AXES)
        outputs = jax.lax.fori_loop(0, chunks.trips, body, ChunkValues(zeros, zeros, zeros))
        return jax.tree.map(lambda x: x.reshape(shape), outputs)

    tokens = layout.tokens
    return layout.run(local, (tokens, layout.weights, tokens, tokens), tokens)(
        hidden, weights, ids, mask
    )


def _forward_rule(hidden, weights, ids, mask, spec):
    hidden, weights, ids, mask = (x.value for x in (hidden, weights, ids, mask))
    values = _forward(hidden, weights, ids, mask, spec)
    return (values.log_prob, values.entropy), (hidden, weights, ids, mask, values)


def _backward_rule(spec, residuals, cotangents):
    hidden, weights, ids, mask, values = residuals
    # An output that the loss does not use, or only under stop_gradient, has a symbolic zero as its
    # cotangent: its term is omitted from the loop.
    g_log_prob, g_entropy = (None if isinstance(g, SymbolicZero) else g for g in cotangents)
    layout, chunk = spec.layout, spec.chunk_size
    entropy = None if g_entropy is None else values.entropy

    def local(hidden, weights, per_token):
        width, padded = hidden.shape[-1], weights.shape[1] * layout.size(FSDP_AXIS)
        flat = hidden.reshape(-1, width)
        weights = layout.gather_weights(weights.astype(hidden.dtype), width)
        mask, *per_token = jax.tree.map(lambda x: x.reshape(-1), per_token)
        chunks = make_chunks(mask, chunk)

        def body(i, grads):
            rows = chunks.rows(i, chunk)
            h = take(flat, rows)
            z = chunk_logits(h, weights, spec)
            dz = gradient_of_logits(z, *jax.tree.map(lambda x: take(x, rows), per_token), spec)
            return add_gradients(grads, rows, dz, h, weights, spec)

        start = start_gradients(flat, weights, layout)
        grads = jax.lax.fori_loop(0, chunks.trips, body, start)
        return finish_gradients(grads, hidden, padded, layout)

    per_token = (mask, ids, values.normalizer, entropy, g_log_prob, g_entropy)
    run = layout.run(
        local, (layout.tokens, layout.weights, layout.tokens), (layout.tokens, layout.weights)
    )
    d_hidden, d_weights = run(hidden, weights, per_token)
    return d_hidden, d_weights.astype(weights.dtype), None, None


def finish_gradients(
    grads: HeadGradients, hidden: jax.Array, padded: int, layout: HeadLayout
) -> tuple[jax.Array, jax.Array]:
    """Reduce the devices' gradients to (gradient like hidden, f32 gradient of the weights'
    shard).
    """
    d_hidden = layout.sum_over_vocabulary(grads.hidden).astype(hidden.dtype)
    return d_hidden.reshape(hidden.shape), layout.scatter_gradient(grads.weights, padded)


fused_head.defvjp(_forward_rule, _backward_rule, symbolic_zeros=True)
