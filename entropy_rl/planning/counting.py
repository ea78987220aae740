"""FLOPs and bytes of a decoder, counted from its shapes, for roofline estimates.

A product [m, k] x [k, n] is 2 m k n FLOPs. Only matrix products and attention are counted,
attention over the pairs of a causal mask, without rematerialization. Bytes are those of arrays too
large to stay on the chip, read or written once; logits of the sampler are written and read. All
layers count as full attention.

Arguments may be NumPy arrays, for many steps at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from entropy_rl.config.optimizer import OptimizerConfig
from entropy_rl.models.decoder import DecoderConfig

F32 = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs and bytes of some work."""

    flops: Any
    bytes: Any

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def total(self) -> Cost:
        """Return the sum over all steps."""
        return Cost(float(np.sum(self.flops)), float(np.sum(self.bytes)))

    def seconds(self, rate: float, bandwidth: float) -> float:
        """Return the roofline time: per step the maximum of compute and memory time, summed."""
        return float(np.sum(np.maximum(self.flops / rate, self.bytes / bandwidth)))


# --- the model
# ---------------------------------------------------------------------------------------------


def layer_weights(c: DecoderConfig) -> int:
    """Return the parameters of the seven weight matrices of one layer."""
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention = c.hidden_size * (heads + 2 * kv_heads) + heads * c.hidden_size
    return attention + 3 * c.hidden_size * c.intermediate_size


def head_weights(c: DecoderConfig) -> int:
    """Return the parameters of the matrix from hidden states to logits."""
    return c.vocab_size * c.hidden_size


def parameters(c: DecoderConfig) -> int:
    """Return all parameters; tied embeddings count once."""
    biases = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim if c.qkv_bias else 0
    biases += c.hidden_size if c.o_bias else 0
    biases += 2 * c.intermediate_size + c.hidden_size if c.mlp_bias else 0
    norms = 2 * c.hidden_size + (2 * c.head_dim if c.qk_norm else 0)
    tables = (1 if c.tie_embeddings else 2) * head_weights(c)
    return c.num_layers * (layer_weights(c) + biases + norms) + c.hidden_size + tables


class WeightBytes(NamedTuple):
    """Bytes of a parameter: of the weight matrices of the layers, and of all others."""

    kernel: float
    other: float

    def of(self, c: DecoderConfig, parameters: int) -> float:
        """Return the bytes of this many parameters, the matrices of all layers among them."""
        kernels = c.num_layers * layer_weights(c)
        return kernels * self.kernel + (parameters - kernels) * self.other


def critic_parameters(c: DecoderConfig) -> int:
    """Return all parameters of a critic: the backbone and a value vector, no LM head."""
    return parameters(c) - (0 if c.tie_embeddings else head_weights(c)) + c.hidden_size


def kv_bytes(c: DecoderConfig, itemsize: int) -> int:
    """Return the bytes of keys and values of one token in all layers."""
    return 2 * c.num_kv_heads * c.head_dim * c.num_layers * itemsize


def attention_flops(c: DecoderConfig, pairs: Any) -> Any:
    """Return the FLOPs of attention in all layers for a number of (query, visible key) pairs."""
    return 4 * c.num_heads * c.head_dim * c.num_layers * pairs


def causal_pairs(lengths: Any) -> Any:
    """Return the number of (query, visible key) pairs in rows of these lengths."""
    return lengths * (lengths + 1) / 2


# --- sampling
# ----------------------------------------------------------------------------------------------


def _read_weights(c: DecoderConfig, itemsize: int, kernel: float | None) -> float:
    # Of an embedding that is not the head as well, only the rows of the tokens are read.
    unread = 0 if c.tie_embeddings else head_weights(c)
    sizes = WeightBytes(itemsize if kernel is None else kernel, itemsize)
    return sizes.of(c, parameters(c) - unread)


def _logits(c: DecoderConfig, rows: Any) -> Cost:
    """Count the LM head without its weights; float32 logits are written and read to sample."""
    return Cost(2 * head_weights(c) * rows, 2 * F32 * c.vocab_size * rows)


def decode_step(
    c: DecoderConfig,
    rows: Any,
    columns: Any,
    prompts: Any,
    prompt_tokens: int,
    itemsize: int,
    kernel: float | None = None,
) -> Cost:
    """Count a decode step: one token for every row.

    Weights are read once; keys and values of new tokens once per row, of a prompt once per copy.

    Args:
      c: The architecture.
      rows: Number of rows.
      columns: New tokens that each row attends to, including the current one.
      prompts: Copies of prompts that are read: one per group that shares it, or one per row.
      prompt_tokens: Tokens of a prompt.
      itemsize: Bytes of a weight, key or value.
      kernel: Bytes of a weight in the matrices of the layers, if they are quantized.
    """
    read = rows * columns + prompts * prompt_tokens
    moved = (read + rows) * kv_bytes(c, itemsize) + rows * c.hidden_size * itemsize
    flops = 2 * c.num_layers * layer_weights(c) * rows
    flops = flops + attention_flops(c, rows * (columns + prompt_tokens))
    return Cost(flops, _read_weights(c, itemsize, kernel) + moved) + _logits(c, rows)


def prefill(
    c: DecoderConfig,
    prompts: int,
    prompt_tokens: int,
    rows: int,
    itemsize: int,
    kernel: float | None = None,
) -> Cost:
    """Count the prefill of all prompts and the first token of every row; see `decode_step`."""
    tokens = prompts * prompt_tokens
    flops = 2 * c.num_layers * layer_weights(c) * tokens
    flops += attention_flops(c, prompts * causal_pairs(prompt_tokens))
    moved = _read_weights(c, itemsize, kernel) + tokens * kv_bytes(c, itemsize)
    return Cost(flops, moved) + _logits(c, rows)


# --- training
# ----------------------------------------------------------------------------------------------


def backbone_flops(c: DecoderConfig, prompt_lengths: np.ndarray, lengths: np.ndarray) -> float:
    """Count a forward pass over rows of prompt and completion, without the LM head.

    Args:
      c: The architecture.
      prompt_lengths: int[B], tokens.
      lengths: int[B], tokens of each completion.
    """
    whole = np.asarray(prompt_lengths, float) + lengths
    layers = 2 * c.num_layers * layer_weights(c) * whole.sum()
    return float(layers + attention_flops(c, causal_pairs(whole).sum()))


def forward_flops(c: DecoderConfig, prompt_lengths: np.ndarray, lengths: np.ndarray) -> float:
    """Count a forward pass with the LM head on completion tokens only."""
    return backbone_flops(c, prompt_lengths, lengths) + 2 * head_weights(c) * float(np.sum(lengths))


def optimizer_bytes(weights: int, optimizer: OptimizerConfig) -> int:
    """Count an optimizer with clipping by global norm.

    The norm reads the gradients; then gradients, parameters and moments are read, and parameters
    and moments written. What is small is left out: the factors of adafactor, and the second moments
    of muon, which only parameters outside of its matrices have.

    Args:
      weights: Parameters that it updates.
      optimizer: Its config.
    """
    first = F32 if optimizer.first_moment_dtype == "float32" else 2
    moments = {"adamw": first + F32, "adafactor": 0}.get(optimizer.name, first)
    return weights * (F32 * (1 + 2 + 1) + 2 * moments)
