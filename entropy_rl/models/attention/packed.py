"""Causal attention of tokens in lists, which is the only place where they are laid out in rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import struct

from entropy_rl.models.packing import make_packing
from entropy_rl.types import PackedTokens

RowAttention = Callable[[jax.Array, jax.Array, jax.Array, int | jax.Array | None], jax.Array]
# Keys and values [R, S, K, h] of the columns before the live ones of each row; zero elsewhere.
Before = tuple[jax.Array, jax.Array] | None


@struct.dataclass
class _Static:
    """A window that is no array, and stays a number where arguments are traced: kernels are made
    for it.
    """

    window: int = struct.field(pytree_node=False)


def make_packed_attention(attend: RowAttention) -> Callable[..., jax.Array]:
    """Builds the attention of lists from that of rows.

    The rows have one of a few shapes; each is compiled, and which one runs is decided on the
    device. Neither scores nor rows are kept for the backward pass, which computes them again: what
    a branch keeps, all branches would have to make room for.

    Args:
      attend: (q [R, T, H, h], k [R, T, K, h], v [R, T, K, h], window) -> [R, T, H, h], causal.

    Returns:
      (q [C, M, H, h], k [C, M, K, h], v [C, M, K, h], before, window, live) -> [C, M, H, h].
    """

    def in_rows(
        shape: tuple[int, int], live: PackedTokens, window: _Static | jax.Array | None
    ) -> Callable:
        columns, rows = shape
        window = window.window if isinstance(window, _Static) else window

        def run(q: jax.Array, k: jax.Array, v: jax.Array, before: Before) -> jax.Array:
            packing = make_packing(live, columns, rows)
            q, k, v = (packing.unpack(x) for x in (q, k, v))
            if before is not None:
                k, v = (_add_before(x, b, live, rows) for x, b in zip((k, v), before, strict=True))
            return packing.pack(attend(q, k, v, window))

        return run

    @jax.custom_vjp
    def attention(q, k, v, before, window, live):
        branches = [in_rows(shape, live, window) for shape in live.shapes]
        return jax.lax.switch(live.shape_index, branches, q, k, v, before)

    def forward(q, k, v, before, window, live):
        return attention(q, k, v, before, window, live), (q, k, v, before, window, live)

    def backward(residuals, d_out):
        q, k, v, before, window, live = residuals

        def pull(shape):
            return lambda d_out, *inputs: jax.vjp(in_rows(shape, live, window), *inputs)[1](d_out)

        gradients = jax.lax.switch(
            live.shape_index, [pull(s) for s in live.shapes], d_out, q, k, v, before
        )
        return *gradients, None, None

    attention.defvjp(forward, backward)

    def of_any_window(q, k, v, before, window, live):
        return attention(
            q, k, v, before, _Static(window) if isinstance(window, int) else window, live
        )

    return of_any_window


def _add_before(x: jax.Array, before: jax.Array, live: PackedTokens, rows: int) -> jax.Array:
    """Rows [C * rows, T, K, h] with the columns before the live ones filled in."""
    shards, columns = live.segment_ids.shape[0], min(x.shape[1], before.shape[1])
    before = before.reshape((shards, -1) + before.shape[1:])[:, :rows, :columns]
    before = before.reshape((-1,) + before.shape[2:]).astype(x.dtype)
    return x.at[:, :columns].add(before)
