"""Conversion between config.json and `DecoderConfig`, without transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropy_rl.config.checks import MOST_LAYERS, fits_float32, shown
from entropy_rl.config.files import read_text
from entropy_rl.models.decoder import DecoderConfig
from entropy_rl.models.rope import (
    DynamicRopeScaling,
    LinearRopeScaling,
    Llama3RopeScaling,
    RopeScaling,
    YarnRopeScaling,
    yarn_attention_factor,
)

_ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
# Defaults of transformers that differ between the families.
_MAX_POSITIONS = {"qwen2": 32768, "qwen3": 32768, "llama": 2048, "mistral": 131072}
_KV_HEADS = {"qwen2": 32, "qwen3": 32, "mistral": 8}
_SLIDING_WINDOW = 4096  # of Qwen and Mistral if absent from config.json; null means none
# Settings that the decoder supports with one value only, which is also the default.
_FIXED = {
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
_ROPE_TYPES = {
    "linear": LinearRopeScaling,
    "dynamic": DynamicRopeScaling,
    "llama3": Llama3RopeScaling,
    "yarn": YarnRopeScaling,
}


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; errors are one line."""
    text = read_text(file)
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{file}: must be JSON of few levels, got too deep a nesting") from None
    except ValueError as error:
        raise ValueError(f"{file}: must be JSON, got {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be a JSON object, got a {type(content).__name__}")
    return content


@dataclasses.dataclass(frozen=True)
class Fields:
    """Typed access to a JSON object; errors name file and field.

    Attributes:
      file: The file.
      raw: The fields that are not null.
    """

    file: Path
    raw: Mapping[str, Any]

    def refuse(self, name: str, found: Any, allowed: str) -> ValueError:
        return ValueError(f"{self.file}: {name}: must be {allowed}, got {shown(found)}")

    def whole(
        self, name: str, default: int | None = None, most: int = 2**31 - 1, least: int = 1
    ) -> int:
        value = self.raw.get(name, default)
        if type(value) is not int or value < least:
            raise self.refuse(name, value, f"a whole number >= {least}")
        if value > most:
            raise self.refuse(name, value, f"a whole number <= {most}")
        return value

    def number(self, name: str, default: float | None = None, least: float | None = None) -> float:
        value = self.raw.get(name, default)
        if type(value) not in (int, float) or not value > 0 or (least and value < least):
            raise self.refuse(name, value, f"a number >= {least}" if least else "a number > 0")
        if not fits_float32(value):
            raise self.refuse(name, value, "a number that float32 holds")
        return value

    def optional_number(self, name: str) -> float | None:
        return float(self.number(name)) if self.raw.get(name) is not None else None

    def switch(self, name: str, default: bool = False) -> bool:
        value = self.raw.get(name, default)
        if type(value) is not bool:
            raise self.refuse(name, value, "true or false")
        return value


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _read_rope(fields: Fields, model_type: str, head_dim: int) -> tuple[float, RopeScaling | None]:
    """Return theta and the scaling of the rotary embeddings."""
    # Newer files have rope_parameters; older ones have rope_theta and rope_scaling.
    name = "rope_scaling" if fields.raw.get("rope_scaling") else "rope_parameters"
    content = fields.raw.get(name) or {}
    if not isinstance(content, dict):
        raise fields.refuse(name, content, "a JSON object")
    rope = Fields(fields.file, _without_nulls(content))
    rope_type = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if any(isinstance(value, dict) for value in rope.raw.values()):
        rope_type = "one per layer type"
    known = ("default", *_ROPE_TYPES)
    if rope_type not in known:
        raise fields.refuse("rope_type", rope_type, f"one of {', '.join(known)}")
    for name, allowed in _FIXED.items():
        found = rope.raw.get(name, fields.raw.get(name, allowed))
        if found != allowed:
            raise fields.refuse(name, found, repr(allowed) if allowed is not None else "absent")

    theta = float((rope if "rope_theta" in rope.raw else fields).number("rope_theta", 10_000.0))
    longest = fields.whole("max_position_embeddings", _MAX_POSITIONS[model_type])
    # As in transformers: the field of the model has priority over that of the scaling.
    above = "original_max_position_embeddings"
    original = (fields if above in fields.raw else rope).whole(above, longest)
    if rope_type == "linear":
        return theta, LinearRopeScaling(float(rope.number("factor", least=1)))
    if rope_type == "dynamic":
        return theta, DynamicRopeScaling(float(rope.number("factor", least=1)), longest)
    if rope_type == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            raise rope.refuse("high_freq_factor", high, f"> low_freq_factor ({low})")
        return theta, Llama3RopeScaling(
            factor=float(rope.number("factor", least=1)),
            low_freq_factor=float(low),
            high_freq_factor=float(high),
            original_max_position_embeddings=original,
        )
    if rope_type == "yarn":
        if theta <= 1:
            raise fields.refuse("rope_theta", theta, "> 1 with yarn")
        # A factor of null is the ratio of the lengths, as DeepSeek's files have it.
        ratio = longest / original if "factor" in content else None
        factor = float(rope.number("factor", ratio, least=1))
        fast, slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
        if fast < slow:
            raise rope.refuse("beta_fast", fast, f">= beta_slow ({slow})")
        given = rope.optional_number("attention_factor")
        mscales = rope.raw.get("mscale"), rope.raw.get("mscale_all_dim")
        if all(mscales):
            mscales = rope.optional_number("mscale"), rope.optional_number("mscale_all_dim")
        return theta, YarnRopeScaling(
            factor=factor,
            original_max_position_embeddings=original,
            attention_factor=yarn_attention_factor(factor, *mscales) if given is None else given,
            beta_fast=float(fast),
            beta_slow=float(slow),
            truncate=rope.switch("truncate", True),
        )
    return theta, None


def _read_windows(
    fields: Fields, content: Mapping[str, Any], model_type: str, num_layers: int
) -> tuple[int | None, tuple[bool, ...]]:
    """Return the sliding window, and which layers use it."""
    raw = fields.raw
    window, layers = None, ()
    has_window = content.get("sliding_window", _SLIDING_WINDOW) is not None
    if model_type == "mistral" and has_window:
        window = fields.whole("sliding_window", _SLIDING_WINDOW)
        layers = (True,) * num_layers
    elif model_type in ("qwen2", "qwen3"):
        if fields.switch("use_sliding_window") and has_window:
            window = fields.whole("sliding_window", _SLIDING_WINDOW)
        first = fields.whole("max_window_layers", 28, least=0) if window else num_layers
        layer_types = raw.get("layer_types") or [
            "sliding_attention" if i >= first else "full_attention" for i in range(num_layers)
        ]
        known = {"full_attention"} | ({"sliding_attention"} if window else set())
        if (
            not isinstance(layer_types, list)
            or len(layer_types) != num_layers
            or any(kind not in known for kind in map(str, layer_types))
        ):
            raise fields.refuse(
                "layer_types", layer_types, f"a list of {num_layers} of {', '.join(sorted(known))}"
            )
        layers = tuple(kind == "sliding_attention" for kind in layer_types)
    # The canonical form of no window.
    return (window, layers) if any(layers) else (None, ())


def read_config(directory: str | Path) -> DecoderConfig:
    """Read the architecture from config.json, as written by transformers 4 or 5.

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
    fields = Fields(file, _without_nulls(content))
    model_type = fields.raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        raise fields.refuse("model_type", model_type, f"one of {', '.join(_ARCHITECTURES)}")
    hidden_size, num_heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    num_layers = fields.whole("num_hidden_layers", most=MOST_LAYERS)
    default = num_heads if "num_key_value_heads" in content else _KV_HEADS.get(model_type)
    num_kv_heads = fields.whole("num_key_value_heads", default or num_heads)
    if num_heads % num_kv_heads:
        raise fields.refuse(
            "num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads ({num_heads})"
        )
    head_dim = fields.whole(
        "head_dim", 128 if model_type == "qwen3" else max(hidden_size // num_heads, 1)
    )
    if head_dim % 2:
        raise fields.refuse("head_dim", head_dim, "even")
    theta, rope_scaling = _read_rope(fields, model_type, head_dim)
    sliding_window, sliding_layers = _read_windows(fields, content, model_type, num_layers)
    has_bias = model_type in ("llama", "qwen3") and fields.switch("attention_bias")
    return DecoderConfig(
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.whole("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=rope_scaling,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        qkv_bias=model_type == "qwen2" or has_bias,
        o_bias=has_bias,
        mlp_bias=model_type == "llama" and fields.switch("mlp_bias"),
        qk_norm=model_type == "qwen3",
        tie_embeddings=fields.switch("tie_word_embeddings"),
        sliding_window=sliding_window,
        sliding_layers=sliding_layers,
        initializer_range=fields.number("initializer_range", 0.02),
    )


def _model_type(config: DecoderConfig) -> str:
    """Return the Hugging Face architecture of a decoder."""
    if config.qk_norm and config.qkv_bias != config.o_bias:
        raise ValueError(
            "qkv_bias, qk_norm: must not both be set without o_bias: no Hugging Face architecture "
            "has both"
        )
    if config.o_bias and not config.qkv_bias:
        raise ValueError("o_bias: must be False without qkv_bias, got True")
    model_type = "qwen3" if config.qk_norm else "llama"
    if config.qkv_bias and not config.o_bias:
        model_type = "qwen2"
    if model_type == "llama" and any(config.windows):
        has_other_biases = config.qkv_bias or config.mlp_bias
        if has_other_biases or len(set(config.windows)) > 1:
            raise ValueError(f"sliding_window: must be None for llama, got {config.sliding_window}")
        model_type = "mistral"
    if model_type != "llama" and config.mlp_bias:
        raise ValueError(f"mlp_bias: must be False for {model_type}, got True")
    return model_type


def config_json(
    config: DecoderConfig, dtype: str, source_config: str | Path | None
) -> dict[str, Any]:
    """Return the content of config.json, in the form that all transformers versions read."""
    model_type = _model_type(config)
    base = {}
    if source_config is not None:
        source = read_config(source_config)
        if source.tie_embeddings:  # the file may have a head of its own nevertheless
            source = dataclasses.replace(source, tie_embeddings=config.tie_embeddings)
        if source != config:
            raise ValueError(
                f"{Path(source_config) / 'config.json'}: must describe the model that is saved, "
                "got another architecture"
            )
        base = read_json(Path(source_config) / "config.json")
        model_type = base["model_type"]  # Mistral without a window is Llama by another name
    rope_scaling, more = None, {}
    if config.rope_scaling is not None:
        names = {kind: name for name, kind in _ROPE_TYPES.items()}
        rope_scaling = {"rope_type": names[type(config.rope_scaling)]} | vars(config.rope_scaling)
        if isinstance(config.rope_scaling, DynamicRopeScaling):  # it is a field of the model
            more["max_position_embeddings"] = rope_scaling.pop("max_position_embeddings")
    if model_type == "llama":
        more |= {"attention_bias": config.o_bias, "mlp_bias": config.mlp_bias}
    elif model_type == "mistral":
        more["sliding_window"] = config.sliding_window
    else:
        more |= {
            "use_sliding_window": any(config.windows),
            "sliding_window": config.sliding_window,
            "layer_types": ["sliding_attention" if w else "full_attention" for w in config.windows],
        }
    rewritten = ("rope_parameters", "dtype")  # newer names of fields below
    return (
        {name: value for name, value in base.items() if name not in rewritten}
        | {
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
            **more,
        }
        | ({"attention_bias": config.o_bias} if model_type == "qwen3" else {})
    )
