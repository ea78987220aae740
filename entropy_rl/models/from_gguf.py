"""Convert a GGUF file of a Llama model, as llama.cpp reads it, to a Hugging Face directory.

Without torch. Quantized tensors become the float32 numbers that they stand for, so nothing is lost.
The tokenizer is the byte-level BPE of SmolLM; files with another one are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from entropy_rl.models.hf_tensors import WEIGHTS

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_CONTROL_TOKEN = 3  # of `tokenizer.ggml.token_type`

Field = Callable[[str], Any]


def convert_gguf(source: Path, directory: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer.

    Args:
      source: The GGUF file.
      directory: An existing directory, in which the files are written.

    Raises:
      ImportError: If the package gguf is not installed.
      ValueError: If the file has another architecture or tokenizer.
    """
    from gguf import GGUFReader

    reader = GGUFReader(source)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    architecture = field("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{source}: general.architecture: must be llama, got {architecture!r}")
    tokenizer, tokenizer_config = _convert_tokenizer(source, field)
    tensors = _convert_tensors(reader, field)
    ids = {
        f"{name}_token_id": field(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    config = _convert_config(field) | {"tie_word_embeddings": "lm_head.weight" not in tensors} | ids
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors makes it readable by the owner only
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in (
        ("config.json", config),
        ("generation_config.json", ids),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _convert_tensors(reader: Any, field: Field) -> dict[str, np.ndarray]:
    """The tensors as float32, by their names in Hugging Face's checkpoints."""
    from gguf.quants import dequantize

    heads = {
        "attn_q": field("llama.attention.head_count"),
        "attn_k": field("llama.attention.head_count_kv"),
    }
    tensors = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *block, part, kind = tensor.name.split(".")  # such as blk.3.attn_q.weight
        if part in heads:
            value = _split_halves(value, heads[part])
        name = f"model.layers.{block[1]}.{_LAYER_NAMES[part]}" if block else _OTHER_NAMES[part]
        tensors[f"{name}.{kind}"] = np.ascontiguousarray(value)
    return tensors


def _split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of a head for rope on halves.

    llama.cpp rotates the rows (2i, 2i + 1) of a head together, Hugging Face (i, i + d / 2).
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _convert_config(field: Field) -> dict[str, Any]:
    hidden_size = field("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rope_theta": field("llama.rope.freq_base"),
        # It was 1e-5 before it was written as float32.
        "rms_norm_eps": float(str(np.float32(field("llama.attention.layer_norm_rms_epsilon")))),
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": hidden_size**-0.5,  # of SmolLM2; not in the file
        "torch_dtype": "float32",
    }


def _convert_tokenizer(source: Path, field: Field) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and the content of tokenizer_config.json with the chat template.

    llama.cpp's pre-tokenizer `smollm` splits off every digit, then follows GPT-2.
    """
    kind = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"{source}: tokenizer.ggml: must be gpt2 with smollm, got {kind}")
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == _CONTROL_TOKEN
        ]
    )
    special = {
        f"{name}_token": tokens[field(f"tokenizer.ggml.{key}_token_id")]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return tokenizer, special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": field("llama.context_length"),
        "chat_template": field("tokenizer.chat_template"),
    }
