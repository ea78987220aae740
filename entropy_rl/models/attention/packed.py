"""Causal attention of packed tokens, which are unpacked to padded rows here only."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from entropy_rl.models.packing import make_packing
from entropy_rl.types import PackedTokens

RowAttention = Callable[[jax.Array, jax.Array, jax.Array, int | jax.Array | None], jax.Array]
# Keys and values [P, S, K, h] of prompts, one of which precedes the packed tokens of each row.
Before = tuple[jax.Array, jax.Array] | None


@struct.dataclass
class _Static:
    """A static window, which kernels are compiled for."""

    window: int = struct.field(pytree_node=False)


def make_packed_attention(attend: RowAttention) -> Callable[..., jax.Array]:
    """Builds attention of packed tokens from attention of padded rows.

    The rows have one of a few compiled shapes, selected on the device. Neither scores nor rows are
    saved for the backward pass, which recomputes them: `lax.switch` would allocate the residuals
    of all branches.

    Args:
      attend: (q [R, T, H, h], k [R, T, K, h], v [R, T, K, h], window) -> [R, T, H, h], causal.

    Returns:
      (q [C, M, H, h], k [C, M, K, h], v [C, M, K, h], before, window, packed) -> [C, M, H, h].
    """

    def in_rows(
        shape: tuple[int, int], packed: PackedTokens, window: _Static | jax.Array | None
    ) -> Callable:
        columns, rows = shape
        window = window.window if isinstance(window, _Static) else window

        def run(q: jax.Array, k: jax.Array, v: jax.Array, before: Before) -> jax.Array:
            packing = make_packing(packed, columns, rows)
            q, k, v = (packing.unpack(x) for x in (q, k, v))
            if before is not None:
                k, v = (
                    _add_before(x, b, packed, rows) for x, b in zip((k, v), before, strict=True)
                )
            return packing.pack(attend(q, k, v, window))

        return run

    @jax.custom_vjp
    def attention(q, k, v, before, window, packed):
        branches = [in_rows(shape, packed, window) for shape in packed.shapes]
        return jax.lax.switch(packed.shape_index, branches, q, k, v, before)

    def forward(q, k, v, before, window, packed):
        return attention(q, k, v, before, window, packed), (q, k, v, before, window, packed)

    def backward(residuals, d_out):
        q, k, v, before, window, packed = residuals

        def pull(shape):
            return lambda d_out, *inputs: jax.vjp(in_rows(shape, packed, window), *inputs)[1](d_out)

        gradients = jax.lax.switch(
            packed.shape_index, [pull(s) for s in packed.shapes], d_out, q, k, v, before
        )
        return *gradients, None, None

    attention.defvjp(forward, backward)

    def of_any_window(q, k, v, before, window, packed):
        return attention(
            q, k, v, before, _Static(window) if isinstance(window, int) else window, packed
        )

    return of_any_window


def _add_before(x: jax.Array, prompts: jax.Array, packed: PackedTokens, rows: int) -> jax.Array:
    """Fills in keys or values [C * rows, T, K, h] at the positions before the packed tokens."""
    shards, columns = packed.segment_ids.shape[0], min(x.shape[1], prompts.shape[1])
    prompts = prompts.reshape((shards, -1) + prompts.shape[1:])[:, :, :columns]
    index, first = (y.reshape(shards, -1)[:, :rows] for y in (packed.prompt, packed.first))
    before = jax.vmap(lambda y, n: jnp.take(y, n, axis=0, mode="clip"))(prompts, index)
    before = before.reshape((-1,) + before.shape[2:])
    inside = jnp.arange(columns)[None] < first.reshape(-1, 1)
    before = jnp.where(inside[..., None, None], before, 0)
    return x.at[:, :columns].add(before.astype(x.dtype))
