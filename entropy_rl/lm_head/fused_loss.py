"""LM head fused with a per-token loss: loss and gradients in one pass over the chunks.

    total = Σ_t loss(log π(a_t), H_t, x_t)
    ∂total/∂z_t = ∂loss/∂log π · ∂log π/∂z + ∂loss/∂H · ∂H/∂z

With a loss that is a function of each token alone, the gradients are computed along with the logits
of a chunk, which need not be recomputed: three matrix products of the head's size instead of four.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from entropy_rl.lm_head.fused import (
    HeadSpec,
    add_gradients,
    chunk_logits,
    chunk_values,
    finish_gradients,
    gradient_of_logits,
    make_chunks,
    prepare,
    put,
    start_gradients,
    take,
)
from entropy_rl.lm_head.vocabulary import HeadWeights
from entropy_rl.types import DATA_AXES, FSDP_AXIS

TokenLoss = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def fused_head_loss(
    hidden: jax.Array,
    head_weights: jax.Array | HeadWeights,
    ids: jax.Array,
    mask: jax.Array | None,
    token_loss: TokenLoss,
    inputs: Any,
    *,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """Compute Σ token_loss(log π(id), H(π), inputs) over unmasked tokens, with π as in
    `log_prob_and_entropy`.

    If differentiated, the forward pass also computes the gradients of `hidden` and `head_weights`
    (the latter in float32), which the backward pass scales.

    Args:
      hidden: [..., D].
      head_weights: [V, D].
      ids: int32[...].
      mask: bool[...]; None for all tokens.
      token_loss: (log_prob f32[C], entropy f32[C], inputs [C] each) -> (loss f32[C], aux), where
        aux is a pytree of [C]. It must be a function of each token alone, without closing over
        arrays. It may use `stop_gradient`.
      inputs: Pytree of [...], of any type; treated as constants.
      temperature: Divides the logits.
      chunk_size: Tokens per chunk and device; None to choose by the vocabulary size.
      mesh: See `log_prob_and_entropy`.

    Returns:
      (total f32[], log_prob f32[...], entropy f32[...], aux, a pytree of [...]); zero where masked.
      Only the total has a gradient.

    Raises:
      ValueError: If the shapes are inconsistent.
    """
    arrays, spec = prepare(hidden, head_weights, ids, mask, temperature, chunk_size, mesh)
    for path, x in jax.tree.leaves_with_path(inputs):
        if x.shape != ids.shape:
            raise ValueError(
                f"inputs{jax.tree_util.keystr(path)}: must have the shape of ids {ids.shape}, got "
                f"{x.shape}"
            )
    inputs = jax.lax.stop_gradient(jax.tree.map(spec.pad, inputs))
    with jax.named_scope("fused_head_loss"):
        total, per_token = _fused(*arrays, inputs, token_loss, spec)
    return total, *jax.lax.stop_gradient(jax.tree.map(spec.unpad, per_token))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _fused(hidden, weights, ids, mask, inputs, token_loss, spec):
    return _run(hidden, weights, ids, mask, inputs, token_loss, spec, with_gradients=False)[0]


def _forward_rule(hidden, weights, ids, mask, inputs, token_loss, spec):
    outputs, (d_hidden, d_weights) = _run(
        hidden, weights, ids, mask, inputs, token_loss, spec, with_gradients=True
    )
    return outputs, (d_hidden, d_weights, jnp.zeros((), weights.dtype))


def _backward_rule(token_loss, spec, residuals, cotangents):
    d_hidden, d_weights, like_weights = residuals
    scale = cotangents[0]
    d_hidden = (scale * d_hidden.astype(jnp.float32)).astype(d_hidden.dtype)
    return d_hidden, (scale * d_weights).astype(like_weights.dtype), None, None, None


_fused.defvjp(_forward_rule, _backward_rule)


def _run(
    hidden,
    weights,
    ids,
    mask,
    inputs,
    token_loss: TokenLoss,
    spec: HeadSpec,
    *,
    with_gradients: bool,
):
    """Return ((total, (log_prob, entropy, aux)), gradients of the total or None)."""
    layout, chunk = spec.layout, spec.chunk_size
    per_token_shapes = _output_shapes(token_loss, inputs, chunk)
    used = _used_outputs(token_loss, inputs, chunk) if with_gradients else None

    def local(hidden, weights, tokens):
        shape, width = tokens[0].shape, hidden.shape[-1]
        padded = weights.shape[1] * layout.size(FSDP_AXIS)
        flat = hidden.reshape(-1, width)
        weights = layout.gather_weights(weights.astype(hidden.dtype), width)
        ids, mask, inputs = jax.tree.map(lambda x: x.reshape(-1), tokens)
        chunks = make_chunks(mask, chunk)

        def body(i, carry):
            outputs, grads = carry
            rows = chunks.rows(i, chunk)
            is_token = rows < ids.shape[0]
            h, chunk_ids, x = (
                take(flat, rows),
                take(ids, rows),
                jax.tree.map(lambda x: take(x, rows), inputs),
            )
            z = chunk_logits(h, weights, spec)
            values = chunk_values(z, chunk_ids, spec)

            def chunk_loss(log_prob, entropy):
                losses, aux = token_loss(log_prob, entropy, x)
                losses = jnp.where(is_token, losses, 0)  # padding of the last chunk
                return jnp.sum(losses), (losses, aux)

            if with_gradients:
                cotangents, (losses, aux) = jax.grad(chunk_loss, (0, 1), has_aux=True)(
                    values.log_prob, values.entropy
                )
                g = [
                    jnp.where(is_token, g, 0) if u else None
                    for g, u in zip(cotangents, used, strict=True)
                ]
                dz = gradient_of_logits(z, chunk_ids, values.normalizer, values.entropy, *g, spec)
                grads = add_gradients(grads, rows, dz, h, weights, spec)
            else:
                _, (losses, aux) = chunk_loss(values.log_prob, values.entropy)
            new = (losses, (values.log_prob, values.entropy, aux))
            return jax.tree.map(lambda out, value: put(out, rows, value), outputs, new), grads

        start = jax.tree.map(
            lambda s: layout.zeros(ids.shape, s.dtype, *DATA_AXES), per_token_shapes
        )
        grads = start_gradients(flat, weights, layout) if with_gradients else None
        (losses, per_token), grads = jax.lax.fori_loop(0, chunks.trips, body, (start, grads))
        if with_gradients:
            grads = finish_gradients(grads, hidden, padded, layout)
        per_token = jax.tree.map(lambda x: x.reshape(shape), per_token)
        return (layout.sum_over_tokens(jnp.sum(losses)), per_token), grads

    scalar, tokens = jax.sharding.PartitionSpec(), layout.tokens
    specs = ((scalar, tokens), (tokens, layout.weights) if with_gradients else None)
    run = layout.run(local, (tokens, layout.weights, tokens), specs)
    return run(hidden, weights, (ids, mask, inputs))


def _chunk_shapes(inputs: Any, chunk: int) -> tuple[jax.ShapeDtypeStruct, Any]:
    number = jax.ShapeDtypeStruct((chunk,), jnp.float32)
    return number, jax.tree.map(lambda x: jax.ShapeDtypeStruct((chunk,), x.dtype), inputs)


def _output_shapes(token_loss: TokenLoss, inputs: Any, chunk: int) -> Any:
    """Return the shapes of (loss, (log_prob, entropy, aux)) of a chunk."""
    number, slices = _chunk_shapes(inputs, chunk)
    loss, aux = jax.eval_shape(token_loss, number, number, slices)
    for name, x in [
        ("loss", loss),
        *((f"aux{jax.tree_util.keystr(p)}", x) for p, x in jax.tree.leaves_with_path(aux)),
    ]:
        if x.shape != (chunk,):
            raise ValueError(
                f"token_loss: must return a {name} of shape {(chunk,)}, one per token, got "
                f"{x.shape}"
            )
    return loss, (number, number, aux)


def _used_outputs(token_loss: TokenLoss, inputs: Any, chunk: int) -> tuple[bool, bool]:
    """Return whether the loss has a gradient for the log-prob, and for the entropy.

    An unused output has a symbolic zero as its cotangent, and its term is omitted from the loop.
    """
    used = (False, False)

    @jax.custom_vjp
    def watch(log_prob, entropy):
        return log_prob, entropy

    def forward(log_prob, entropy):
        return (log_prob.value, entropy.value), None

    def backward(_, cotangents):
        nonlocal used
        used = tuple(not isinstance(g, SymbolicZero) for g in cotangents)
        return None, None

    watch.defvjp(forward, backward, symbolic_zeros=True)

    def total(log_prob, entropy, x):
        return jnp.sum(token_loss(*watch(log_prob, entropy), x)[0])

    number, slices = _chunk_shapes(inputs, chunk)
    jax.eval_shape(jax.grad(total, (0, 1)), number, number, slices)
    return used
