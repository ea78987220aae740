"""Tiny Hugging Face directories with random weights, made from a seed without torch.

The names, shapes and files are spelled out here instead of being taken from the library, so that
they are a second opinion on it.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

VOCAB, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 384, 64, 96, 2, 4, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the last three ids: 381, 382, 383

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": VOCAB - 1,
}
_LLAMA3 = {  # wavelengths below 16 positions are kept, above 64 stretched; the heads here have both
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Half of the files are in the form of transformers 4 (rope_theta, rope_scaling, torch_dtype), as
# most on the hub are, the others in that of 5 (rope_parameters, dtype).
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
        "sliding_window": 4,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "qwen2_untied": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 10_000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
    "qwen2_window": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "dtype": "float32",
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 24,  # neither HIDDEN // HEADS nor a power of two
        "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
        "attention_bias": False,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * LAYERS,
        "tie_word_embeddings": True,
        "dtype": "float32",
    },
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": 500_000.0,
        "rope_scaling": _LLAMA3,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
}
ARCHITECTURES = tuple(CONFIGS)
# Ropes, biases and heads beyond those; one of a kind each.
CONFIGS |= {
    "qwen2_yarn": CONFIGS["qwen2"]
    | {
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 8,
        },
        "torch_dtype": "float32",
    },
    "llama_linear": CONFIGS["llama3"] | {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "qwen3_dynamic": CONFIGS["qwen3"]
    | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}},
    "llama_bias": CONFIGS["llama3"] | {"attention_bias": True, "mlp_bias": True},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
    "mistral_window": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
        "sliding_window": 4,
        "tie_word_embeddings": False,
        "dtype": "float32",
    },
    "qwen3_bias": CONFIGS["qwen3"] | {"attention_bias": True},
    # A head of its own, though the file says that it is tied.
    "qwen3_own_head": CONFIGS["qwen3"],
}
VARIANTS = tuple(CONFIGS)[len(ARCHITECTURES) :]

# Qwen2's own.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = (
    "You are a helpful assistant. Using the numbers 3, 5, 7 and 50, make an equation that equals "
    "24.",
    "You may use each number once and the operations + - * / and brackets. Put the answer in a "
    "box.",
    "Let me think step by step. First we add 3 and 5 to get 8, and then multiply: (3 + 5) * 7 = "
    "56.",
    "Wait, that is too large. Let's try again: 50 - (7 * 3) - 5 = 24, which is what we wanted.",
    "The answer is \\boxed{50 - 7 * 3 - 5}. Therefore the final answer is $\\frac{1}{2}$.",
    "What is the smallest positive integer such that the sum of the digits is equal to nine?",
    "If the triangle has sides of length a and b, then the remaining side is at most a + b.",
)


def tensors(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The weights of a fixture as float32, under Hugging Face's names and with its (out, in)
    kernels.

    Norm scales and biases are far from 1 and 0, and the projections are large enough for attention
    to be uneven: what is dropped, swapped or transposed shows in the logits.
    """
    config = _COMMON | CONFIGS[name]
    # The legacy generator: its numbers are promised to stay, and golden logits hang on them.
    random = np.random.RandomState(seed + 1000 * tuple(CONFIGS).index(name))
    head_dim = config.get("head_dim", HIDDEN // HEADS)

    def normal(*shape: int, scale: float = 0.1, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * random.standard_normal(shape)).astype(np.float32)

    def norm_scale(size: int) -> np.ndarray:
        return normal(size, scale=0.3, mean=1.0)

    weights = {
        "model.embed_tokens.weight": normal(VOCAB, HIDDEN),
        "model.norm.weight": norm_scale(HIDDEN),
    }
    if not config["tie_word_embeddings"] or name.endswith("own_head"):
        weights["lm_head.weight"] = normal(VOCAB, HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        weights[f"{layer}.input_layernorm.weight"] = norm_scale(HIDDEN)
        weights[f"{layer}.post_attention_layernorm.weight"] = norm_scale(HIDDEN)
        for projection, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            weights[f"{layer}.self_attn.{projection}_proj.weight"] = normal(
                heads * head_dim, HIDDEN, scale=0.2
            )
            if config["model_type"] == "qwen2" or config.get("attention_bias"):
                weights[f"{layer}.self_attn.{projection}_proj.bias"] = normal(
                    heads * head_dim, scale=0.3
                )
        weights[f"{layer}.self_attn.o_proj.weight"] = normal(HIDDEN, HEADS * head_dim, scale=0.2)
        if config.get("attention_bias"):
            weights[f"{layer}.self_attn.o_proj.bias"] = normal(HIDDEN, scale=0.3)
        if config.get("mlp_bias"):
            for projection in ("gate", "up", "down"):
                size = HIDDEN if projection == "down" else INTERMEDIATE
                weights[f"{layer}.mlp.{projection}_proj.bias"] = normal(size, scale=0.3)
        if config["model_type"] == "qwen3":
            weights[f"{layer}.self_attn.q_norm.weight"] = norm_scale(head_dim)
            weights[f"{layer}.self_attn.k_norm.weight"] = norm_scale(head_dim)
        weights[f"{layer}.mlp.gate_proj.weight"] = normal(INTERMEDIATE, HIDDEN, scale=0.2)
        weights[f"{layer}.mlp.up_proj.weight"] = normal(INTERMEDIATE, HIDDEN, scale=0.2)
        weights[f"{layer}.mlp.down_proj.weight"] = normal(HIDDEN, INTERMEDIATE, scale=0.2)
    return weights


def make_hf_dir(
    directory: str | Path,
    name: str = "qwen2",
    *,
    dtype: str | None = None,
    shards: int = 1,
    tokenizer: bool = False,
    seed: int = 0,
) -> Path:
    """Writes a fixture.

    Args:
      directory: Where to; is made.
      name: One of `ARCHITECTURES` or `VARIANTS`.
      dtype: `float32`, `float16` or `bfloat16`; None for what the fixture's config.json says.
      shards: Number of weight files; with more than one there is an index.
      tokenizer: Whether tokenizer files are written too.
      seed: Of the weights. Golden values are those of 0.

    Returns:
      The directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = _COMMON | CONFIGS[name]
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = dtype or config[key]
    (directory / "config.json").write_text(json.dumps(config, indent=2))

    numpy_type = ml_dtypes.bfloat16 if config[key] == "bfloat16" else np.dtype(config[key])
    weights = {tensor: values.astype(numpy_type) for tensor, values in tensors(name, seed).items()}
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {tensor: weights[tensor] for tensor in list(weights)[i::shards]}
            save_file(part, directory / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index = {
            "metadata": {"total_size": sum(w.nbytes for w in weights.values())},
            "weight_map": weight_map,
        }
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    if tokenizer:
        save_tokenizer(directory)
    return directory


@functools.cache
def _bpe() -> str:
    """tokenizer.json of a byte-level BPE that splits text as Qwen2's does; `VOCAB` tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    # Qwen2's pattern: words with the space before them, single digits, punctuation, line breaks.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCAB - len(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    assert bpe.get_vocab_size() == VOCAB - len(SPECIAL)
    return bpe.to_str()


def save_tokenizer(directory: Path) -> None:
    """Writes the tokenizer as transformers does; `AutoTokenizer` loads it without a network."""
    from transformers import Qwen2Tokenizer

    bpe = json.loads(_bpe())["model"]
    special = {
        token: len(bpe["vocab"]) + i for i, token in enumerate(SPECIAL)
    }  # else in an order of its own
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"] | special,
        merges=[tuple(pair) for pair in bpe["merges"]],
        unk_token=None,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        extra_special_tokens=[SPECIAL[1]],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)


def edit_config(directory: Path, **fields) -> None:
    """Change fields of config.json."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def set_type(file: Path, name: str, kind: str) -> None:
    """Make a tensor zeros of any type of safetensors, also of one that numpy does not have."""
    weights = load_file(file)
    shape, size = weights[name].shape, {"F8_E4M3": 1, "I8": 1, "F64": 8}[kind]
    save_file(weights | {name: np.zeros((math.prod(shape), size), np.uint8)}, file)
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header[name] |= {"dtype": kind, "shape": shape}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def edit_weights(directory: Path, remove=(), **replace) -> None:
    """Remove and replace tensors of model.safetensors."""
    file = directory / "model.safetensors"
    weights = {k: v for k, v in load_file(file).items() if k not in remove}
    save_file(weights | replace, file)
