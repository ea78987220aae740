"""Causal attention of full sequences on TPUs: JAX's splash kernel, with padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from entropy_rl.models.attention.on_mesh import over_mesh
from entropy_rl.models.remat import ATTENTION_RESIDUALS
from entropy_rl.precision import with_precision

_LANES = 128
_MAX_BLOCK = 512


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None = None,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`causal_attention` with the Pallas splash kernel, which skips fully masked blocks.

    Args:
      q: [B, T, H, h].
      k: [B, T, K, h].
      v: [B, T, K, h].
      window: Tokens further back than window - 1 are masked.
      mesh: The mesh that B and the heads are sharded over.
      interpret: Run the kernel in interpret mode.

    Returns:
      [B, T, H, h].

    Raises:
      ValueError: If the heads are not divisible by the mesh's tensor axis.
    """
    return over_mesh(lambda q, k, v: _splash(q, k, v, window, interpret), q, k, v, mesh)


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, window: int | None, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import (
        splash_attention as splash,  # slow import, TPU only
    )

    _, length, heads, h = q.shape
    blocks = -(-length // _MAX_BLOCK)
    block = _LANES * -(-length // (_LANES * blocks))  # the smallest with that many blocks
    padded = blocks * block
    # Padded keys come after every real query; padded queries are dropped.
    pad = lambda x: jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0)))  # noqa: E731
    shape = (padded, padded)
    mask = (
        splash.CausalMask(shape)
        if window is None
        else splash.LocalMask(shape, (window - 1, 0), offset=0)
    )
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block, block_kv=block,
            block_q_dkv=block, block_kv_dkv=block,
            block_q_dq=block, block_kv_dq=block,
        ),
        residual_checkpoint_name=ATTENTION_RESIDUALS,
        interpret=interpret,
    )  # fmt: skip
    attend = with_precision(jax.vmap(kernel), q.dtype)
    out = attend(pad(q * h**-0.5), pad(k), pad(v))
    return out[:, :, :length].swapaxes(1, 2)
