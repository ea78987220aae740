"""Conversion between config.json and `DecoderConfig`, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropy_rl.models.decoder import DecoderConfig
from entropy_rl.models.rope import Llama3RopeScaling

_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
_SLIDING_WINDOW = 4096  # Qwen's default if absent from config.json; null means none
# Settings that the decoder supports with one value only, which is also the default.
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object; errors are one line."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not found")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: must be JSON, got {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a JSON object, got a {type(content).__name__}")
    return content


def read_config(directory: str | Path) -> DecoderConfig:
    """Reads the architecture from config.json, as written by transformers 4 or 5.

    Absent fields have the defaults of transformers.

    Args:
      directory: A Hugging Face directory.

    Returns:
      The architecture.

    Raises:
      FileNotFoundError: If there is no config.json.
      ValueError: If the decoder does not support the model.
    """
    file = Path(directory) / "config.json"
    content = read_json(file)
    raw = {name: value for name, value in content.items() if value is not None}

    def refuse(name: str, found: Any, allowed: str) -> ValueError:
        return ValueError(f"{file}: {name}: must be {allowed}, got {found!r}")

    def whole(name: str, default: int | None = None) -> int:
        value = raw.get(name, default)
        if type(value) is not int or value < 1:
            raise refuse(name, value, "a whole number >= 1")
        return value

    def number(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
        value = fields.get(name, default)
        if type(value) not in (int, float) or value <= 0:
            raise refuse(name, value, "a number > 0")
        return value

    def switch(name: str) -> bool:
        value = raw.get(name, False)
        if type(value) is not bool:
            raise refuse(name, value, "true or false")
        return value

    model_type = raw.get("model_type")
    if model_type not in _ARCHITECTURES:
        raise refuse("model_type", model_type, f"one of {', '.join(_ARCHITECTURES)}")

    # Newer files have rope_parameters; older ones have rope_theta and rope_scaling.
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(name) or {}
    if not isinstance(rope, dict):
        raise refuse(name, rope, "a JSON object")
    rope = {name: value for name, value in rope.items() if value is not None}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, dict) for value in rope.values()):
        rope_type = "one per layer type"
    if rope_type not in ("default", "llama3"):
        raise refuse("rope_type", rope_type, "default or llama3")
    for name, allowed in _FIXED.items():
        found = rope.get(name, raw.get(name, allowed))
        if found != allowed:
            raise refuse(name, found, repr(allowed) if allowed is not None else "absent")
    rope_scaling = None
    if rope_type == "llama3":
        original = rope.get("original_max_position_embeddings") or whole("max_position_embeddings")
        rope_scaling = Llama3RopeScaling(
            factor=float(number(rope, "factor")),
            low_freq_factor=float(number(rope, "low_freq_factor")),
            high_freq_factor=float(number(rope, "high_freq_factor")),
            original_max_position_embeddings=original,
        )

    hidden_size, num_layers, num_heads = (
        whole(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    num_kv_heads = whole("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise refuse(
            "num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads ({num_heads})"
        )

    sliding_window, sliding_layers = None, ()
    if model_type != "llama":
        if (
            switch("use_sliding_window")
            and content.get("sliding_window", _SLIDING_WINDOW) is not None
        ):
            sliding_window = whole("sliding_window", _SLIDING_WINDOW)
        first = raw.get("max_window_layers", 28) if sliding_window else num_layers
        layer_types = raw.get("layer_types") or [
            "sliding_attention" if i >= first else "full_attention" for i in range(num_layers)
        ]
        known = {"full_attention"} | ({"sliding_attention"} if sliding_window else set())
        if len(layer_types) != num_layers or not known.issuperset(layer_types):
            raise refuse(
                "layer_types", layer_types, f"a list of {num_layers} of {', '.join(sorted(known))}"
            )
        sliding_layers = tuple(kind == "sliding_attention" for kind in layer_types)
    if not any(sliding_layers):  # the canonical form of no window
        sliding_window, sliding_layers = None, ()

    return DecoderConfig(
        vocab_size=whole("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=whole("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=whole("head_dim", 128 if model_type == "qwen3" else hidden_size // num_heads),
        rope_theta=float(number(rope if "rope_theta" in rope else raw, "rope_theta", 10_000.0)),
        rope_scaling=rope_scaling,
        norm_eps=number(raw, "rms_norm_eps", 1e-6),
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type == "qwen3",
        tie_embeddings=switch("tie_word_embeddings"),
        sliding_window=sliding_window,
        sliding_layers=sliding_layers,
        initializer_range=number(raw, "initializer_range", 0.02),
    )


def config_json(
    config: DecoderConfig, dtype: str, source_config: str | Path | None
) -> dict[str, Any]:
    """Returns the content of config.json, in the form that all transformers versions read."""
    if config.qkv_bias and config.qk_norm:
        raise ValueError(
            "qkv_bias, qk_norm: must not both be set: no Hugging Face architecture has both"
        )
    model_type = "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    if model_type == "llama" and any(config.windows):
        raise ValueError(f"sliding_window: must be None for llama, got {config.sliding_window}")
    base = {}
    if source_config is not None:
        if read_config(source_config) != config:
            raise ValueError(
                f"{Path(source_config) / 'config.json'}: must describe the model that is saved, "
                "got another architecture"
            )
        base = read_json(Path(source_config) / "config.json")
    rope_scaling = None
    if config.rope_scaling is not None:
        rope_scaling = {"rope_type": "llama3"} | vars(config.rope_scaling)
    sliding = {}
    if model_type != "llama":
        sliding = {
            "use_sliding_window": any(config.windows),
            "sliding_window": config.sliding_window,
            "layer_types": ["sliding_attention" if w else "full_attention" for w in config.windows],
        }
    rewritten = ("rope_parameters", "dtype")  # newer names of fields below
    return {name: value for name, value in base.items() if name not in rewritten} | {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "torch_dtype": dtype,
        **sliding,
    }
