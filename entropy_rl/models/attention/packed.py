"""Causal attention of packed tokens, which are unpacked to padded rows here only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from entropy_rl.models.attention.xla import Prefix
from entropy_rl.models.packing import Packing, make_packing
from entropy_rl.models.remat import ATTENTION_RESIDUALS
from entropy_rl.types import PackedTokens

Window = int | jax.Array | None
# (q, k, v, window, prefix or None) -> output.
RowAttention = Callable[[jax.Array, jax.Array, jax.Array, Window, Prefix | None], jax.Array]
# Keys and values [P, S, K, h] of prompts, one of which precedes the packed tokens of each row.
Before = tuple[jax.Array, jax.Array] | None
# Columns of the prompts that attention is compiled for, as fractions of S.
_PROMPT_FRACTIONS = (1 / 2, 3 / 4, 1)


class _Shape(NamedTuple):
    """Padded rows that attention is compiled for."""

    columns: int  # packed tokens of a row
    rows: int  # per shard
    prompt: int  # columns of the prompts


@struct.dataclass
class _Rows:
    """The padded rows of packed tokens, in the smallest shape that holds them."""

    shape_index: jax.Array  # int32[]
    to_rows: jax.Array  # as in `Packing`
    to_packed: jax.Array  # as in `Packing`; its first entries count
    first: jax.Array  # int32[C, R / C], tokens before those of the row
    prompt: jax.Array | None  # int32[C, R / C], in which prompt of the shard
    shapes: tuple[_Shape, ...] = struct.field(pytree_node=False)


@struct.dataclass
class _Static:
    """A static window, which kernels are compiled for."""

    window: int = struct.field(pytree_node=False)


def packed_attention(
    attend: RowAttention,
    packed: PackedTokens,
    prompt_columns: int = 0,
    takes_prefix: bool = True,
) -> Callable[[jax.Array, jax.Array, jax.Array, Before, Window], jax.Array]:
    """Build attention of packed tokens from attention of padded rows.

    The rows have one of a few compiled shapes, selected on the device. Neither scores nor rows are
    saved for the backward pass, which recomputes them: `lax.switch` would allocate the residuals
    of all branches. The index maps are computed here, once for all layers.

    Args:
      attend: (q [R, T, H, h], k [R, T, K, h], v [R, T, K, h], window, prefix) -> [R, T, H, h],
        causal.
      packed: The packed tokens.
      prompt_columns: S, columns of the prompts before the tokens; 0 for no prompts.
      takes_prefix: Whether `attend` takes keys and values that have no queries. If not, they are
        put into the rows, and those queries are computed in vain.

    Returns:
      (q [C, M, H, h], k [C, M, K, h], v [C, M, K, h], before, window) -> [C, M, H, h].
    """

    def in_rows(shape: _Shape, rows: _Rows, window: _Static | jax.Array | None) -> Callable:
        window = window.window if isinstance(window, _Static) else window
        ahead = 0 if takes_prefix else shape.prompt

        def run(q: jax.Array, k: jax.Array, v: jax.Array, before: Before) -> jax.Array:
            columns, prefix = ahead + shape.columns, None
            to_packed = rows.to_packed[:, : shape.rows * columns]
            packing = Packing(rows.to_rows, to_packed, columns)
            q, k, v = (packing.unpack(x) for x in (q, k, v))
            if before is not None:
                first = rows.first[:, : shape.rows].reshape(-1)
                of_rows = [_of_rows(x, rows, shape) for x in before]
                if takes_prefix:
                    prefix = Prefix(*of_rows, first)
                else:
                    k, v = (_add_before(x, b, first) for x, b in zip((k, v), of_rows, strict=True))
            return packing.pack(attend(q, k, v, window, prefix))

        return run

    @jax.custom_vjp
    def attention(q, k, v, before, window, rows):
        branches = [in_rows(shape, rows, window) for shape in rows.shapes]
        return jax.lax.switch(rows.shape_index, branches, q, k, v, before)

    def forward(q, k, v, before, window, rows):
        return attention(q, k, v, before, window, rows), (q, k, v, before, window, rows)

    def backward(residuals, d_out):
        q, k, v, before, window, rows = residuals

        def pull(shape):
            return lambda d_out, *inputs: jax.vjp(in_rows(shape, rows, window), *inputs)[1](d_out)

        branches = [pull(shape) for shape in rows.shapes]
        return *jax.lax.switch(rows.shape_index, branches, d_out, q, k, v, before), None, None

    attention.defvjp(forward, backward)
    rows = _make_rows(packed, prompt_columns, takes_prefix)

    def of_any_window(q, k, v, before, window):
        window = _Static(window) if isinstance(window, int) else window
        out = attention(q, k, v, before, window, rows)
        return checkpoint_name(out, ATTENTION_RESIDUALS)

    return of_any_window


def _make_rows(packed: PackedTokens, prompt_columns: int, takes_prefix: bool) -> _Rows:
    lengths = {-(-int(part * prompt_columns) // 8) * 8 for part in _PROMPT_FRACTIONS}
    widths = sorted({min(length, prompt_columns) for length in lengths})
    longest = jnp.where(packed.last > packed.first, packed.first, 0).max()
    of_prompts = jnp.searchsorted(jnp.array(widths), longest) if prompt_columns else 0
    index = packed.shape_index * len(widths) + of_prompts
    shapes = tuple(_Shape(*shape, width) for shape in packed.shapes for width in widths)

    columns = [s.columns if takes_prefix else s.columns + s.prompt for s in shapes]
    packing = make_packing(
        packed,
        jnp.array(columns)[index],
        jnp.array([s.rows for s in shapes])[index],
        begin=packed.first if takes_prefix else None,
        entries=max(n * s.rows for n, s in zip(columns, shapes, strict=True)),
    )
    first, prompt = (
        None if x is None else x.reshape(packed.segment_ids.shape[0], -1)
        for x in (packed.first, packed.prompt)
    )
    return _Rows(index, packing.to_rows, packing.to_packed, first, prompt, shapes)


def _of_rows(prompts: jax.Array, rows: _Rows, shape: _Shape) -> jax.Array:
    """The keys or values [C * rows, columns, K, h] of the prompts of rows."""
    index = rows.prompt[:, : shape.rows]
    prompts = prompts.reshape((len(index), -1) + prompts.shape[1:])[:, :, : shape.prompt]
    before = jax.vmap(lambda y, n: y.at[n].get(mode="clip", wrap_negative_indices=False))(
        prompts, index
    )
    return before.reshape((-1,) + before.shape[2:])


def _add_before(x: jax.Array, before: jax.Array, first: jax.Array) -> jax.Array:
    """Fill in keys or values [R, S, K, h] at the positions before the packed tokens."""
    columns = before.shape[1]
    inside = jnp.arange(columns)[None] < first[:, None]
    before = jnp.where(inside[..., None, None], before, 0)
    return x.at[:, :columns].add(before.astype(x.dtype))
