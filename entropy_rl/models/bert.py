"""Sentence encoders of the BERT kind, from Hugging Face directories (arXiv 1810.04805, 1908.10084).

The parameters are the checkpoint's own tensors by their own names, in float32: what is only ever
run forward needs neither another layout nor a module.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.models.hf import open_tensors
from entropy_rl.models.hf_config import read_json

_PREFIX = "bert."  # of checkpoints with a head
_FIXED = {"hidden_act": "gelu", "position_embedding_type": "absolute"}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Names follow config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


EncoderParams = dict[str, jax.Array]


def load_encoder(directory: Path) -> tuple[EncoderConfig, EncoderParams]:
    """Loads an encoder, without its heads and pooler.

    Args:
      directory: config.json of model_type "bert", with safetensors.

    Returns:
      (The architecture, the parameters.)

    Raises:
      FileNotFoundError: config.json or the weights are not there.
      ValueError: Another model, or tensors that are not those of config.json.
    """
    file = directory / "config.json"
    raw = {"layer_norm_eps": 1e-12} | read_json(file)
    for name, allowed in {"model_type": "bert", **_FIXED}.items():
        if raw.get(name) not in (None, allowed):
            raise ValueError(
                f"{file}: {name}: {raw[name]!r} is not supported; allowed: {allowed!r}"
            )
    names = [field.name for field in dataclasses.fields(EncoderConfig)]
    absent = [name for name in ("model_type", *names) if raw.get(name) is None]
    if absent:
        raise ValueError(f"{file}: {absent[0]}: missing")
    config = EncoderConfig(**{name: raw[name] for name in names})
    tensors = {
        name.removeprefix(_PREFIX): tensor for name, tensor in open_tensors(directory).items()
    }
    params = {}
    for name, shape in _shapes(config).items():
        if name not in tensors:
            raise ValueError(f"{directory}: tensor {name} is missing")
        file, tensor = tensors[name]
        if tuple(tensor.get_shape()) != shape:
            found = tuple(tensor.get_shape())
            raise ValueError(
                f"{file}: tensor {name} has shape {found}; by config.json it is {shape}"
            )
        params[name] = jnp.asarray(np.asarray(tensor[:], np.float32))
    return config, params


def _shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    c, size = config, config.hidden_size
    shapes = {
        "embeddings.word_embeddings.weight": (c.vocab_size, size),
        "embeddings.position_embeddings.weight": (c.max_position_embeddings, size),
        "embeddings.token_type_embeddings.weight": (c.type_vocab_size, size),
    }
    dense = {f"attention.self.{name}": (size, size) for name in ("query", "key", "value")}
    dense |= {"attention.output.dense": (size, size)}
    dense |= {
        "intermediate.dense": (c.intermediate_size, size),
        "output.dense": (size, c.intermediate_size),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}." for i in range(c.num_hidden_layers)):
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
        for name, shape in dense.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    return shapes | {f"{norm}.{kind}": (size,) for norm in norms for kind in ("weight", "bias")}


def encode(
    config: EncoderConfig, params: EncoderParams, ids: jax.Array, mask: jax.Array
) -> jax.Array:
    """The mean of the last hidden states of each text, with norm 1.

    Args:
      config: The architecture.
      params: Its parameters.
      ids: int32[R, T], right-padded; T <= max_position_embeddings.
      mask: bool[R, T], one True in each row at least.

    Returns:
      f32[R, hidden_size].
    """
    hidden = encoder_hidden(config, params, ids, mask)
    mean = jnp.sum(hidden * mask[..., None], axis=1) / mask.sum(axis=1, keepdims=True)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def encoder_hidden(
    config: EncoderConfig, params: EncoderParams, ids: jax.Array, mask: jax.Array
) -> jax.Array:
    """The last hidden states f32[R, T, hidden_size]; arguments as of `encode`."""

    def dense(x: jax.Array, name: str) -> jax.Array:
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"].reshape((1, 1, -1))

    def norm(x: jax.Array, name: str) -> jax.Array:
        x = jax.nn.standardize(x, axis=-1, epsilon=config.layer_norm_eps)
        weight, bias = (params[f"{name}.{kind}"].reshape((1, 1, -1)) for kind in ("weight", "bias"))
        return x * weight + bias

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape((*x.shape[:2], config.num_attention_heads, -1))

    words, places, types = (
        params[f"embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    )
    x = words[ids] + places[None, : ids.shape[1]] + types[None, :1]
    x = norm(x, "embeddings.LayerNorm")
    for layer in (f"encoder.layer.{i}." for i in range(config.num_hidden_layers)):
        q, k, v = (
            heads(dense(x, f"{layer}attention.self.{name}")) for name in ("query", "key", "value")
        )
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])
        attended = dense(attended.reshape(x.shape), f"{layer}attention.output.dense")
        x = norm(x + attended, f"{layer}attention.output.LayerNorm")
        inner = jax.nn.gelu(dense(x, f"{layer}intermediate.dense"), approximate=False)
        x = norm(x + dense(inner, f"{layer}output.dense"), f"{layer}output.LayerNorm")
    return x
