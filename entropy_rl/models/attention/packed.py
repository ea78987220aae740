"""Causal attention of packed tokens, which are unpacked to padded rows here only."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from entropy_rl.models.attention.xla import Prefix
from entropy_rl.models.packing import make_packing
from entropy_rl.models.remat import ATTENTION_RESIDUALS
from entropy_rl.types import PackedTokens

Window = int | jax.Array | None
# (q, k, v, window, prefix or None) -> output.
RowAttention = Callable[[jax.Array, jax.Array, jax.Array, Window, Prefix | None], jax.Array]
# Keys and values [P, S, K, h] of prompts, one of which precedes the packed tokens of each row.
Before = tuple[jax.Array, jax.Array] | None
# Columns of the prompts that attention is compiled for, as fractions of S.
_PROMPT_FRACTIONS = (1 / 2, 3 / 4, 1)


@struct.dataclass
class _Static:
    """A static window, which kernels are compiled for."""

    window: int = struct.field(pytree_node=False)


def make_packed_attention(
    attend: RowAttention, takes_prefix: bool = True
) -> Callable[..., jax.Array]:
    """Builds attention of packed tokens from attention of padded rows.

    The rows have one of a few compiled shapes, selected on the device. Neither scores nor rows are
    saved for the backward pass, which recomputes them: `lax.switch` would allocate the residuals
    of all branches.

    Args:
      attend: (q [R, T, H, h], k [R, T, K, h], v [R, T, K, h], window, prefix) -> [R, T, H, h],
        causal.
      takes_prefix: Whether `attend` takes keys and values that have no queries. If not, they are
        put into the rows, and those queries are computed in vain.

    Returns:
      (q [C, M, H, h], k [C, M, K, h], v [C, M, K, h], before, window, packed) -> [C, M, H, h].
    """

    def in_rows(
        shape: tuple[int, int, int], packed: PackedTokens, window: _Static | jax.Array | None
    ) -> Callable:
        columns, rows, of_prompts = shape
        window = window.window if isinstance(window, _Static) else window

        def run(q: jax.Array, k: jax.Array, v: jax.Array, before: Before) -> jax.Array:
            begin, ahead = (packed.first, 0) if takes_prefix else (None, of_prompts)
            packing, prefix = make_packing(packed, ahead + columns, rows, begin=begin), None
            q, k, v = (packing.unpack(x) for x in (q, k, v))
            if before is not None and takes_prefix:
                lengths = _first_rows(packed.first, packed, rows).reshape(-1)
                prefix = Prefix(*(_of_rows(x, packed, rows, of_prompts) for x in before), lengths)
            elif before is not None:
                k, v = (
                    _add_before(x, b, packed, rows, of_prompts)
                    for x, b in zip((k, v), before, strict=True)
                )
            return packing.pack(attend(q, k, v, window, prefix))

        return run

    @jax.custom_vjp
    def attention(q, k, v, before, window, packed):
        index, shapes = _select(packed, before)
        branches = [in_rows(shape, packed, window) for shape in shapes]
        return jax.lax.switch(index, branches, q, k, v, before)

    def forward(q, k, v, before, window, packed):
        return attention(q, k, v, before, window, packed), (q, k, v, before, window, packed)

    def backward(residuals, d_out):
        q, k, v, before, window, packed = residuals
        index, shapes = _select(packed, before)

        def pull(shape):
            return lambda d_out, *inputs: jax.vjp(in_rows(shape, packed, window), *inputs)[1](d_out)

        branches = [pull(shape) for shape in shapes]
        return *jax.lax.switch(index, branches, d_out, q, k, v, before), None, None

    attention.defvjp(forward, backward)

    def of_any_window(q, k, v, before, window, packed):
        window = _Static(window) if isinstance(window, int) else window
        out = attention(q, k, v, before, window, packed)
        return checkpoint_name(out, ATTENTION_RESIDUALS)

    return of_any_window


def _select(packed: PackedTokens, before: Before) -> tuple[jax.Array, list[tuple[int, int, int]]]:
    """The shapes (columns, rows, columns of prompts), and the index of the smallest that fits."""
    if before is None:
        return packed.shape_index, [(*shape, 0) for shape in packed.shapes]
    length = before[0].shape[1]
    widths = sorted({-(-int(part * length) // 8) * 8 for part in _PROMPT_FRACTIONS[:-1]} | {length})
    widths = [width for width in widths if width <= length]
    longest = jnp.where(packed.last > packed.first, packed.first, 0).max()
    of_prompts = jnp.searchsorted(jnp.array(widths), longest)
    index = packed.shape_index * len(widths) + of_prompts
    return index, [(*shape, width) for shape in packed.shapes for width in widths]


def _first_rows(x: jax.Array, packed: PackedTokens, rows: int) -> jax.Array:
    """The first rows of each shard, [C, rows]."""
    return x.reshape(packed.segment_ids.shape[0], -1)[:, :rows]


def _of_rows(prompts: jax.Array, packed: PackedTokens, rows: int, columns: int) -> jax.Array:
    """The keys or values [C * rows, columns, K, h] of the prompts of rows."""
    shards = packed.segment_ids.shape[0]
    prompts = prompts.reshape((shards, -1) + prompts.shape[1:])[:, :, :columns]
    index = _first_rows(packed.prompt, packed, rows)
    before = jax.vmap(lambda y, n: jnp.take(y, n, axis=0, mode="clip"))(prompts, index)
    return before.reshape((-1,) + before.shape[2:])


def _add_before(
    x: jax.Array, prompts: jax.Array, packed: PackedTokens, rows: int, columns: int
) -> jax.Array:
    """Fills in keys or values [C * rows, T, K, h] at the positions before the packed tokens."""
    before = _of_rows(prompts, packed, rows, columns)
    inside = jnp.arange(columns)[None] < _first_rows(packed.first, packed, rows).reshape(-1, 1)
    before = jnp.where(inside[..., None, None], before, 0)
    return x.at[:, :columns].add(before.astype(x.dtype))
