"""The shapes that are measured, random weights for them, and what fits into the memory of a
device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.models.decoder import DecoderConfig
from entropy_rl.planning import counting

GiB = 2**30
_QWEN = dict(rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, qk_norm=False)
SHAPES = {
    "tiny": DecoderConfig(512, 64, 128, 2, 4, 2, 16, tie_embeddings=True, **_QWEN),
    "1.5b": DecoderConfig(
        151936, 1536, 8960, 28, 12, 2, 128, tie_embeddings=True, **_QWEN
    ),  # Qwen2.5-1.5B
    "7b": DecoderConfig(
        152064, 3584, 18944, 28, 28, 4, 128, tie_embeddings=False, **_QWEN
    ),  # Qwen2.5-7B
}
_USABLE = 0.9  # of the memory; the rest is lost between blocks, and to kernels
_HEAD_BYTES = GiB  # a few float32 chunks of logits


def random_params(shapes: Any, dtype: Any, seed: int) -> Any:
    """Random parameters, made leaf by leaf on the device in the type in which they are needed.

    Args:
      shapes: The tree, as from `jax.eval_shape`.
      dtype: Of all leaves.
      seed: Of the numbers.
    """

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        name = path[-1].key
        if name in ("scale", "bias"):
            return jnp.full(shape.shape, float(name == "scale"), dtype)
        return _normal(key, shape.shape, jnp.dtype(dtype).name)

    leaves, tree = jax.tree.flatten_with_path(shapes)
    # The generator of the hardware: billions of numbers take a moment, and reproducing them is of
    # no use.
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(leaves))
    return tree.unflatten(
        [leaf(path, shape, k) for (path, shape), k in zip(leaves, keys, strict=True)]
    )


def _draw(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(key, shape, dtype) * jnp.asarray(0.02, dtype)


_normal = jax.jit(_draw, static_argnums=(1, 2))


def decode_bytes(
    c: DecoderConfig, rows: int, room: int, prompts: int, prompt_tokens: int, size: int
) -> int:
    """The least memory for decoding, bytes: weights, the cache with its room, and logits."""
    cache = (rows * room + prompts * prompt_tokens) * counting.kv_bytes(c, size)
    return counting.parameters(c) * size + cache + rows * c.vocab_size * counting.F32


def state_bytes(c: DecoderConfig) -> int:
    """The least memory for training, bytes: masters, two moments and gradients in float32."""
    return counting.parameters(c) * 4 * counting.F32


def training_bytes(c: DecoderConfig, tokens: int, remat: str, size: int) -> int:
    """An estimate of the memory for an update, bytes.

    Per parameter: a master, two moments, the gradients and those of a micro-batch, and a copy in
    the type of the products. Per token of a micro-batch: what the layers keep, and what one works
    with.

    Args:
      c: The model.
      tokens: Packed tokens of a micro-batch.
      remat: none, dots or full.
      size: Bytes of an activation.
    """
    copy = size if size < counting.F32 else 0
    heads = (c.num_heads + c.num_kv_heads) * c.head_dim
    dots = 4 * c.hidden_size + 2 * heads + 2 * c.intermediate_size
    everything = (
        2 * dots
    )  # norms in float32, rotated queries and keys, the activation and its product
    kept = {"none": everything, "dots": dots, "full": c.hidden_size}[remat]
    activations = tokens * size * (c.num_layers * kept + 2 * everything + 4 * c.hidden_size)
    return counting.parameters(c) * (5 * counting.F32 + copy) + activations + _HEAD_BYTES


def step_bytes(c: DecoderConfig, tokens: int, remat: str, size: int, cache: float) -> int:
    """An estimate of the memory for a whole RL step, bytes: that of its update, or of its rollout.

    Args:
      c: The model.
      tokens: As in `training_bytes`.
      remat: As in `training_bytes`.
      size: As in `training_bytes`.
      cache: Bytes that the rollout may take for its cache.
    """
    rollout = counting.parameters(c) * (3 * counting.F32 + size) + cache
    return max(training_bytes(c, tokens, remat, size), int(rollout))


def layers_that_fit(c: DecoderConfig, memory: int, needed: Any) -> int:
    """How many layers of a model fit.

    Args:
      c: The model.
      memory: Bytes of the device.
      needed: (model with fewer layers) -> bytes.

    Raises:
      ValueError: If not even one does.
    """
    for layers in range(c.num_layers, 0, -1):
        if needed(dataclasses.replace(c, num_layers=layers)) <= _USABLE * memory:
            return layers
    raise ValueError(
        f"--layers: not even one layer fits into the {memory / GiB:.1f} GiB of the device"
    )


def check_fits(what: str, needed: int, memory: int | None, allowed: str) -> None:
    """Checks what is needed at least.

    Raises:
      ValueError: If it is more than there is.
    """
    if memory is not None and needed > memory:
        raise ValueError(
            f"{what}: needs at least {needed / GiB:.1f} GiB of {memory / GiB:.1f} GiB; allowed: "
            f"{allowed}"
        )
