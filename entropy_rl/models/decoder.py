"""Decoder of Qwen2 / Qwen2.5, Qwen3, Llama 3 and Mistral, and its `Policy`.

Submodules have Hugging Face's names. Training, prefill and decoding share one `Block`, to which
the caller passes the attention function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from entropy_rl.lm_head.vocabulary import HeadWeights, Ranges
from entropy_rl.models.attention import (
    Prefix,
    PromptCache,
    RowCache,
    cached_attention,
    causal_attention,
    chunk_attention,
    empty_row_cache,
    packed_attention,
    resolve_attention,
    resolve_decode_attention,
    xla_attention,
)
from entropy_rl.models.embedding import embed_tokens
from entropy_rl.models.linear import Dense, fuse_adapters, split_adapters
from entropy_rl.models.packing import make_packing
from entropy_rl.models.quantized import cast_floats
from entropy_rl.models.remat import rematerialize
from entropy_rl.models.rope import RopeScaling, apply_rope, rope_frequencies, rope_magnitude
from entropy_rl.types import TENSOR_AXIS, DecodeCache, PackedTokens, Params, Policy

_UNLIMITED = 2**30  # a window as large as any sequence


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a supported family; field names follow config.json where possible."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    qkv_bias: bool  # Qwen2, and `attention_bias`
    qk_norm: bool  # Qwen3
    tie_embeddings: bool
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()  # per layer: whether it uses the window
    initializer_range: float = 0.02
    o_bias: bool = False  # `attention_bias` of Llama and Qwen3
    mlp_bias: bool = False

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Window of each layer; None for full attention."""
        if self.sliding_window is None:
            return (None,) * self.num_layers
        return tuple(self.sliding_window if sliding else None for sliding in self.sliding_layers)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, in float32 (arXiv 1910.07467)."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)  # the mean of squares loses too much in bfloat16
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        # Rounded before the product, as the reference implementations do.
        return scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,)) * y.astype(x.dtype)


class Attention(nn.Module):
    """Projections and rotary embeddings around an attention function of the caller."""

    config: DecoderConfig
    dtype: Any
    fused: bool  # one matrix for queries, keys and values

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, attend: Callable
    ) -> tuple[jax.Array, Any]:
        c = self.config
        frequencies = rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)

        def project(name: str, heads: int) -> jax.Array:
            y = _dense(self, heads * c.head_dim, f"{name}_proj", use_bias=c.qkv_bias)(x)
            return y.reshape(x.shape[:-1] + (heads, c.head_dim))

        if self.fused:
            ends = (c.num_heads, c.num_heads + c.num_kv_heads)
            q, k, v = jnp.split(project("qkv", c.num_heads + 2 * c.num_kv_heads), ends, axis=-2)
        else:
            q, k, v = (
                project("q", c.num_heads),
                project("k", c.num_kv_heads),
                project("v", c.num_kv_heads),
            )
        if c.qk_norm:
            q, k = RMSNorm(c.norm_eps, name="q_norm")(q), RMSNorm(c.norm_eps, name="k_norm")(k)
        rope = partial(
            apply_rope,
            positions=positions,
            frequencies=frequencies,
            magnitude=rope_magnitude(c.rope_scaling),
        )
        out, extra = attend(rope(q), rope(k), v)
        project_out = _dense(self, c.hidden_size, "o_proj", use_bias=c.o_bias)
        return project_out(out.reshape(x.shape[:-1] + (-1,))), extra


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    config: DecoderConfig
    dtype: Any
    fused: bool  # one matrix for gate and up

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.config.intermediate_size
        dense = partial(_dense, self, use_bias=self.config.mlp_bias)
        if self.fused:
            gate, up = jnp.split(dense(2 * size, "gate_up_proj")(x), 2, axis=-1)
        else:
            gate, up = dense(size, "gate_proj")(x), dense(size, "up_proj")(x)
        return dense(self.config.hidden_size, "down_proj")(nn.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm transformer layer."""

    config: DecoderConfig
    dtype: Any
    fused: bool = False  # projections of the same input are one matrix

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, attend: Callable
    ) -> tuple[jax.Array, Any]:
        """Run the layer.

        Args:
          x: [..., D].
          positions: int32[...].
          attend: (q [..., H, h], k [..., K, h], v [..., K, h]) -> (output [..., H, h], extra).

        Returns:
          ([..., D], extra), with the second output of `attend`, such as a cache.
        """
        c = self.config
        normed = RMSNorm(c.norm_eps, name="input_layernorm")(x)
        attended, extra = Attention(c, self.dtype, self.fused, name="self_attn")(
            normed, positions, attend
        )
        x += attended
        normed = RMSNorm(c.norm_eps, name="post_attention_layernorm")(x)
        return x + MLP(c, self.dtype, self.fused, name="mlp")(normed), extra


def _dense(module: nn.Module, features: int, name: str, use_bias: bool = False) -> Dense:
    init = nn.initializers.normal(module.config.initializer_range)
    return Dense(features, use_bias, module.dtype, init, name=name)


def _fuse(layer: Params) -> Params:
    """Fuse the projections of a layer, for fewer and larger matrix products in decoding."""
    attention, mlp = dict(layer["self_attn"]), dict(layer["mlp"])

    def join(module: dict, names: tuple[str, ...]) -> Params:
        parts = [module.pop(f"{name}_proj") for name in names]
        kernels, adapters = split_adapters(parts)
        fused = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *kernels)
        return fused | fuse_adapters(adapters, [_columns(part) for part in kernels])

    attention["qkv_proj"] = join(attention, ("q", "k", "v"))
    mlp["gate_up_proj"] = join(mlp, ("gate", "up"))
    return {**layer, "self_attn": attention, "mlp": mlp}


def _columns(dense: Params) -> int:
    """Return the number of columns of a kernel, which may be quantized."""
    return next(iter(dense.values())).shape[-1]


def backbone_params(params: Params) -> Params:
    """Return the parameters without those of the LM head."""
    return {name: leaf for name, leaf in params.items() if name != "lm_head"}


def make_policy(
    config: DecoderConfig,
    compute_dtype: Any = jnp.float32,
    remat: str = "none",
    attention: str = "auto",
    decode_attention: str = "auto",
    mesh: Mesh | None = None,
    unused: Ranges = (),
) -> Policy:
    """Make the `Policy` of a decoder.

    Training parameters are float32 with the layers stacked on a leading axis, so that one compiled
    layer is scanned. Decoding parameters are in `compute_dtype` with one entry per layer, because a
    scan over layers would copy the whole cache in every step.

    Args:
      config: The architecture.
      compute_dtype: Type of activations and decoding weights.
      remat: What the layers save for the backward pass: none, dots or full (see `rematerialize`).
      attention: Implementation for full sequences: auto, xla, cudnn or splash. `auto` is resolved
        when a function of the policy is traced, as is that of `decode_attention`.
      decode_attention: Implementation for new tokens and the cache: auto, xla, or ragged on GPUs
        and TPUs.
      mesh: The mesh that the policy runs on, for kernels that the compiler cannot partition; None
        for one device.
      unused: Ranges of ids that are no token of the tokenizer: they are never sampled, and count
        in no log-prob or entropy.

    Returns:
      The policy.

    Raises:
      ValueError: If the attention implementation does not support the model, or `remat` is unknown.
    """
    rematerialize(lambda: None, remat)  # raises early
    windows = config.windows
    find_attention = partial(resolve_attention, attention, compute_dtype, config.head_dim, windows)
    whole_heads = mesh is not None and config.num_kv_heads % mesh.shape[TENSOR_AXIS] != 0
    find_decode_attention = partial(
        resolve_decode_attention, decode_attention, config.head_dim, whole_heads=whole_heads
    )
    if attention != "auto":
        find_attention()  # raises early, without a device, and not when first traced

    def attend_causally(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        window: int | jax.Array | None,
        prefix: Prefix | None = None,
    ) -> jax.Array:
        if prefix is not None:
            return xla_attention(q, k, v, window, prefix=prefix)
        return causal_attention(q, k, v, window=window, implementation=find_attention(), mesh=mesh)

    def make_packed_attention(packed: PackedTokens, prompt_columns: int = 0) -> Callable:
        takes_prefix = find_attention() == "xla"
        return packed_attention(attend_causally, packed, prompt_columns, takes_prefix)

    # A fused matrix whose columns are sharded could not be split again without communication.
    fused = mesh is None or mesh.shape[TENSOR_AXIS] == 1
    block, decode_block = Block(config, compute_dtype), Block(config, compute_dtype, fused)
    norm = RMSNorm(config.norm_eps)

    def embed(params: Params, ids: jax.Array, mesh: Mesh | None = None) -> jax.Array:
        return embed_tokens(params["embed_tokens"]["embedding"], ids, compute_dtype, mesh)

    def final_norm(params: Params, x: jax.Array) -> jax.Array:
        return norm.apply({"params": params["norm"]}, x)

    def init(key: jax.Array) -> Params:
        embed_key, head_key, *layer_keys = jax.random.split(key, 2 + config.num_layers)
        x, positions = (
            jnp.zeros((1, 1, config.hidden_size), compute_dtype),
            jnp.zeros((1, 1), jnp.int32),
        )
        attend = lambda q, k, v: (q, None)  # noqa: E731
        layers = jax.vmap(lambda k: block.init(k, x, positions, attend)["params"])(
            jnp.stack(layer_keys)
        )

        def table(k: jax.Array) -> jax.Array:
            return config.initializer_range * jax.random.normal(
                k, (config.vocab_size, config.hidden_size)
            )

        params = {
            "embed_tokens": {"embedding": table(embed_key)},
            "layers": layers,
            "norm": {"scale": jnp.ones(config.hidden_size)},
        }
        return (
            params if config.tie_embeddings else params | {"lm_head": {"kernel": table(head_key)}}
        )

    def run_layers(
        params: Params, x: jax.Array, positions: jax.Array, attend: Callable, before: Any = None
    ) -> tuple[jax.Array, Any]:
        """Scan the layers; `attend` takes (q, k, v, the layer's entry of `before`, its window)."""

        def layer(x: jax.Array, inputs: tuple) -> tuple[jax.Array, Any]:
            before, layer_params, window = inputs
            window = windows[0] if window is None else window
            return block.apply(
                {"params": layer_params},
                x,
                positions,
                lambda q, k, v: attend(q, k, v, before, window),
            )

        per_layer = None
        if len(set(windows)) > 1:  # a scanned input, so that the layers remain one scan
            per_layer = jnp.array([_UNLIMITED if w is None else w for w in windows], jnp.int32)
        # `before` comes first: JAX 0.10.2 mixes up gradients of scanned inputs if one that is
        # added to a mutable array comes after one that is not.
        return jax.lax.scan(rematerialize(layer, remat), x, (before, params["layers"], per_layer))

    def apply(params: Params, ids: jax.Array) -> jax.Array:
        positions = jnp.arange(ids.shape[1])[
            None
        ]  # the same in every row: the angles are computed once
        attend = lambda q, k, v, _, window: (attend_causally(q, k, v, window), None)  # noqa: E731
        x, _ = run_layers(params, embed(params, ids, mesh), positions, attend)
        return final_norm(params, x)

    def apply_packed(params: Params, ids: jax.Array, packed: PackedTokens) -> jax.Array:
        # Rows get the keys and values of their prompts inside a layer: those of all layers would
        # take much more memory than those of the prompts.
        before = packed.prefix
        attention = make_packed_attention(packed, 0 if before is None else before[0].shape[2])
        attend = lambda *args: (attention(*args), None)  # noqa: E731
        x, _ = run_layers(params, embed(params, ids, mesh), packed.positions, attend, before)
        return final_norm(params, x)

    def prefix(
        params: Params, ids: jax.Array, packed: PackedTokens, columns: int
    ) -> tuple[jax.Array, jax.Array]:
        packing, attention = make_packing(packed, columns), make_packed_attention(packed)

        def attend(q, k, v, before, window):
            # float32: the gradient is a sum over the rows that share a prompt.
            cache = tuple(packing.unpack(x.astype(jnp.float32)) for x in (k, v))
            return attention(q, k, v, before, window), cache

        _, caches = run_layers(params, embed(params, ids, mesh), packed.positions, attend)
        return caches

    def head(params: Params) -> jax.Array | HeadWeights:
        weights = (
            params["embed_tokens"]["embedding"]
            if config.tie_embeddings
            else params["lm_head"]["kernel"]
        )
        return HeadWeights(weights, unused) if unused else weights

    def to_decode(params: Params) -> Params:
        cast = cast_floats(params, compute_dtype)
        layers = (
            jax.tree.map(lambda x, i=i: x[i], cast["layers"]) for i in range(config.num_layers)
        )
        return cast | {"layers": tuple(_fuse(layer) if fused else layer for layer in layers)}

    def prefill(
        params: Params, prompt_ids: jax.Array, prompt_mask: jax.Array
    ) -> tuple[jax.Array, tuple[PromptCache, ...]]:
        positions = jnp.arange(prompt_ids.shape[1])[None]
        x, caches = embed(params, prompt_ids), []
        for layer_params, window in zip(params["layers"], config.windows, strict=True):
            attend = lambda q, k, v, w=window: (attend_causally(q, k, v, w), (k, v))  # noqa: E731
            x, (k, v) = decode_block.apply({"params": layer_params}, x, positions, attend)
            caches.append(PromptCache(keys=jnp.moveaxis(k, 1, -1), values=v.swapaxes(1, 2)))
        last = prompt_mask.sum(-1, dtype=jnp.int32) - 1
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        return final_norm(params, x), tuple(caches)

    def empty_rows(rows: int, columns: int) -> tuple[RowCache, ...]:
        shape = (rows, config.num_kv_heads, columns, config.head_dim)
        return tuple(
            empty_row_cache(shape, compute_dtype, find_decode_attention())
            for _ in range(config.num_layers)
        )

    def decode(
        params: Params, ids: jax.Array, t: jax.Array, cache: DecodeCache
    ) -> tuple[jax.Array, DecodeCache]:
        lengths = cache.prompt_mask.sum(-1, dtype=jnp.int32)
        positions = jnp.repeat(lengths, ids.shape[0] // lengths.shape[0]) + t
        x, caches = embed(params, ids), []
        for layer_params, prompts, rows, window in zip(
            params["layers"], cache.prompts, cache.rows, config.windows, strict=True
        ):
            attend = lambda q, k, v, p=prompts, r=rows, w=window: cached_attention(  # noqa: E731
                q,
                k,
                v,
                p,
                r,
                t,
                cache.prompt_mask,
                w,
                implementation=find_decode_attention(),
                mesh=mesh,
            )
            x, rows = decode_block.apply({"params": layer_params}, x, positions, attend)
            caches.append(rows)
        return final_norm(params, x), cache.replace(rows=tuple(caches))

    def extend(
        params: Params, ids: jax.Array, t: jax.Array, count: jax.Array, cache: DecodeCache
    ) -> DecodeCache:
        lengths = cache.prompt_mask.sum(-1, dtype=jnp.int32)
        positions = (lengths + t)[:, None] + jnp.arange(ids.shape[1])[None]
        x, caches = embed(params, ids), []
        for layer_params, prompts, rows, window in zip(
            params["layers"], cache.prompts, cache.rows, config.windows, strict=True
        ):
            attend = lambda q, k, v, p=prompts, r=rows, w=window: chunk_attention(  # noqa: E731
                q,
                k,
                v,
                p,
                r,
                t,
                count,
                cache.prompt_mask,
                w,
                implementation=find_decode_attention(),
            )
            x, rows = decode_block.apply({"params": layer_params}, x, positions, attend)
            caches.append(rows)
        return cache.replace(rows=tuple(caches))

    return Policy(
        init=init,
        apply=apply,
        apply_packed=apply_packed,
        prefix=prefix,
        head=head,
        to_decode=to_decode,
        prefill=prefill,
        empty_rows=empty_rows,
        decode=decode,
        extend=extend,
    )
