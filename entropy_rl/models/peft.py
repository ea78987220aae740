"""Reads and writes LoRA adapters as PEFT does: adapter_config.json, adapter_model.safetensors.

Of layer N, `base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight` is [r, in] and
`...lora_B.weight` [out, r].
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from entropy_rl.config.files import error_text, require_file
from entropy_rl.config.lora import LORA_TARGETS
from entropy_rl.models.decoder import DecoderConfig
from entropy_rl.models.hf import check_output, new_directory
from entropy_rl.models.hf_config import Fields, read_json
from entropy_rl.models.hf_tensors import check_float, some_of
from entropy_rl.models.linear import LORA_A, LORA_B
from entropy_rl.models.lora import LoraSpec, adapter_shapes, module_of
from entropy_rl.types import Params

log = logging.getLogger(__name__)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KINDS = {LORA_A: "lora_A", LORA_B: "lora_B"}
_TENSOR = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.lora_([AB])\.weight"
)
# Fields that change what the tensors mean -> the values without that effect; null always is one.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "use_dora": (False,),
        "bias": ("none",),
        "lora_bias": (False,),
        "modules_to_save": ([],),
        "rank_pattern": ({},),
        "alpha_pattern": ({},),
        "layers_to_transform": ([],),
        "layer_replication": ([],),
        "target_parameters": ([],),
        "trainable_token_indices": ([], {}),
        "alora_invocation_tokens": ([],),
        "use_bdlora": (False, {}),
        "use_qalora": (False,),
        "fan_in_fan_out": (False,),
        "megatron_config": (),
        "arrow_config": (),
        "kasa_config": ({},),
    }
)
# Initializations that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ and others change it.
_INITIALIZATIONS = ("gaussian", "eva", "orthogonal")
# Fields that do not change what the tensors mean, or that are read by themselves.
_OTHERS = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode"),
        *("base_model_name_or_path", "revision", "target_modules", "exclude_modules"),
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "eva_config"),
        *("layers_pattern", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    }
)
_DEFAULT_RANK, _DEFAULT_ALPHA = 8, 8  # of fields that are absent


def read_adapter_config(directory: Path, warn: bool = False) -> LoraSpec:
    """Read what an adapter is; only the names in `target_modules` that are targets are read.

    Args:
      directory: The adapter.
      warn: Whether unknown fields that are set are named in the log.

    Raises:
      FileNotFoundError: If there is no adapter_config.json.
      ValueError: If it is not LoRA as here, by the name of the first field that differs.
    """
    path = directory / ADAPTER_CONFIG
    raw = read_json(path)
    fields = Fields(path, raw)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise fields.refuse("peft_type", kind, "LORA")
    for name, neutral in _NEUTRAL.items():
        value = raw.get(name)
        if value is not None and value not in neutral:
            allowed = " or ".join(["null", *map(repr, neutral)])
            raise fields.refuse(name, value, f"{allowed}, as nothing else is supported")
    how = raw.get("init_lora_weights")
    if not (how is None or isinstance(how, bool) or str(how).lower() in _INITIALIZATIONS):
        raise fields.refuse(
            "init_lora_weights",
            how,
            f"null, true, false or one of {', '.join(_INITIALIZATIONS)}, as others change the "
            "base too (`path_initial_model_for_weight_conversion` of PEFT's `save_pretrained` "
            "converts such an adapter)",
        )
    unknown = {name for name, value in raw.items() if value} - _NEUTRAL.keys() - _OTHERS
    if warn and unknown:
        log.warning("%s: unknown fields, which are not used: %s", path, some_of(unknown))
    rank = fields.whole("r", _DEFAULT_RANK)
    alpha = float(fields.number("lora_alpha", _DEFAULT_ALPHA))
    rslora = raw.get("use_rslora") is not None and fields.switch("use_rslora")
    named = raw.get("target_modules")  # or a pattern, or full names: `load_adapter` ignores them
    targets = tuple(name for name in LORA_TARGETS if isinstance(named, list) and name in named)
    return LoraSpec(rank, alpha, rslora, targets)


def read_base_name(directory: Path) -> str | None:
    """Return `base_model_name_or_path` of an adapter; None if it has none."""
    name = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def load_adapter(directory: Path, config: DecoderConfig) -> tuple[LoraSpec, Params]:
    """Read an adapter.

    Args:
      directory: adapter_config.json and adapter_model.safetensors.
      config: The architecture of its base.

    Returns:
      (what it is, its parameters as f32 arrays on the host). Dropout is left out, as in inference.

    Raises:
      FileNotFoundError: If a file does not exist.
      ValueError: If it has features that are not supported, is damaged, or fits another base.
    """
    spec = read_adapter_config(directory, warn=True)
    path = directory / ADAPTER_WEIGHTS
    require_file(path)
    try:
        handle = safe_open(path, framework="numpy")
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: is damaged or truncated: {error_text(error)}") from None
    tensors = {}
    for name in handle.keys():  # noqa: SIM118  (the handle is not a mapping)
        check_float(path, name, handle.get_slice(name))
        tensors[name] = handle.get_tensor(name)
    unknown = [name for name in tensors if not _is_supported(name)]
    if unknown:
        raise ValueError(
            f"{path}: must have lora_A and lora_B of {', '.join(LORA_TARGETS)} alone, got "
            f"{some_of(unknown)}"
        )
    present = {_TENSOR.fullmatch(name)[3] for name in tensors}
    targets = tuple(name for name in LORA_TARGETS if name in present)
    if not targets:
        raise ValueError(f"{path}: must have lora_A and lora_B of a layer, got no tensor")
    spec = dataclasses.replace(spec, targets=targets)
    shapes = traverse_util.flatten_dict(adapter_shapes(spec, config))
    names = {place: _tensor_names(place, config.num_layers) for place in shapes}
    expected = {name for of_leaf in names.values() for name in of_leaf}
    if tensors.keys() != expected:
        missing, others = expected - tensors.keys(), tensors.keys() - expected
        raise ValueError(
            f"{path}: must be of a base with {config.num_layers} layers, and adapt the same "
            f"matrices in each, got {f'no {some_of(missing)}' if missing else some_of(others)}"
        )
    params = {}
    for place, shape in shapes.items():
        for name in names[place]:
            if tensors[name].shape != shape.shape[:0:-1]:
                raise ValueError(
                    f"{path}: {name}: must have shape {shape.shape[:0:-1]}, by the rank and the "
                    f"base, got {tensors[name].shape}"
                )
        stacked = [tensors[name].astype(np.float32).T for name in names[place]]
        params[place] = np.stack(stacked)
    return spec, traverse_util.unflatten_dict(params)


def save_adapter(
    directory: str | Path,
    spec: LoraSpec,
    adapter: Params,
    base: str,
    revision: str | None = None,
    dtype: str = "float32",
) -> None:
    """Write an adapter, atomically.

    Args:
      directory: Output directory; must not exist, or be empty.
      spec: What it is.
      adapter: Its parameters, with B as trained, not scaled.
      base: Name or path of its base, for `base_model_name_or_path`.
      revision: Commit of the base, if it has a name on the hub.
      dtype: Type of the tensors.

    Raises:
      FileExistsError: If `directory` is not empty.
    """
    directory = check_output(directory)
    tensors = {}
    for place, leaf in traverse_util.flatten_dict(jax.device_get(adapter)).items():
        for name, matrix in zip(_tensor_names(place, len(leaf)), leaf, strict=True):
            # safetensors would write the buffer of a transposed view untransposed.
            tensors[name] = np.ascontiguousarray(matrix.astype(dtype).T)
    with new_directory(directory) as temporary:
        save_file(tensors, temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        # safetensors makes it readable by the owner only.
        (temporary / ADAPTER_WEIGHTS).chmod(0o644)
        write_adapter_config(temporary, spec, base, revision)


def write_adapter_config(
    directory: Path, spec: LoraSpec, base: str, revision: str | None = None
) -> None:
    """Write adapter_config.json into a directory; arguments as in `save_adapter`."""
    alpha = int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": spec.rank,
        "lora_alpha": alpha,
        "use_rslora": spec.rslora,
        "target_modules": sorted(spec.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    text = json.dumps(fields, indent=2) + "\n"
    (directory / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def _is_supported(name: str) -> bool:
    match = _TENSOR.fullmatch(name)
    return match is not None and match[3] in LORA_TARGETS and match[2] == module_of(match[3])


def _tensor_names(place: tuple[str, ...], num_layers: int) -> list[str]:
    """Return the names of the tensors of a leaf, one per layer."""
    _, *modules, kind = place
    return [
        f"base_model.model.model.layers.{i}.{'.'.join(modules)}.{_KINDS[kind]}.weight"
        for i in range(num_layers)
    ]
