"""Causal attention of whole rows on TPUs: the splash kernel of JAX, padded and laid over a mesh."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.head_layout import pad_axis
from entropy_rl.models.remat import ATTENTION_RESIDUALS
from entropy_rl.types import DATA_AXES, TENSOR_AXIS

_LANES = 128
_MAX_BLOCK = 512


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    window: int | None = None,
    lengths: jax.Array | None = None,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`causal_attention` by Pallas: blocks of scores that nobody sees are not computed.

    A compiler cannot partition a kernel, so that under a mesh each device calls it for rows and heads of
    its own: rows over the data axes, heads over the tensor axis. KV heads that do not divide over it are
    repeated until they do, and rows that do not are filled up.

    Args:
      q: [B, T, H, h].
      k: [B, T, K, h].
      v: [B, T, K, h].
      window: Tokens further back than window - 1 are not seen.
      lengths: Not needed; rows are right-padded and causal.
      mesh: The mesh that B and the heads are sharded over.
      interpret: Run the kernel without a TPU, slowly.

    Returns:
      [B, T, H, h].

    Raises:
      ValueError: If the heads do not divide over the mesh.
    """
    del lengths
    if mesh is None:
        return _splash(q, k, v, window, interpret)
    k, v = (_repeat_heads(x, q.shape[2], mesh.shape[TENSOR_AXIS]) for x in (k, v))
    rows, devices = q.shape[0], math.prod(mesh.shape[axis] for axis in DATA_AXES)
    q, k, v = (pad_axis(x, 0, devices) for x in (q, k, v))
    spec = PartitionSpec(DATA_AXES, None, TENSOR_AXIS)
    attend = jax.shard_map(
        lambda q, k, v: _splash(q, k, v, window, interpret),
        mesh=mesh,
        in_specs=(spec, spec, spec),
        out_specs=spec,
        check_vma=False,  # kernels do not say how their outputs vary over the mesh
    )
    return attend(q, k, v)[:rows]


def _repeat_heads(x: jax.Array, heads: int, devices: int) -> jax.Array:
    """Repeats KV heads until they divide over the devices of the tensor axis."""
    kv_heads = x.shape[2]
    repeats = devices // math.gcd(kv_heads, devices)
    if heads % (kv_heads * repeats):
        raise ValueError(
            f"splash_attention: {heads} query and {kv_heads} KV heads do not divide over the {devices} "
            f"devices of the mesh axis {TENSOR_AXIS}"
        )
    return x if repeats == 1 else jnp.repeat(x, repeats, axis=2)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, window: int | None, interpret: bool) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # takes a second, for TPUs only

    _, length, heads, h = q.shape
    blocks = -(-length // _MAX_BLOCK)
    block = _LANES * -(-length // (_LANES * blocks))  # the smallest that does with as many blocks
    padded = blocks * block
    # Padded keys stand after every real query, padded queries are cut off.
    pad = lambda x: jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0)))  # noqa: E731
    shape = (padded, padded)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), offset=0)
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
    out = jax.vmap(kernel)(pad(q * h**-0.5), pad(k), pad(v))
    return out[:, :, :length].swapaxes(1, 2)
