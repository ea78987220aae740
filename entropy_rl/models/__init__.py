"""Decoders as a `Policy`, adapters, and reading and writing Hugging Face checkpoints."""

from entropy_rl.config.lora import LoraConfig
from entropy_rl.models.decoder import DecoderConfig, backbone_params, make_policy
from entropy_rl.models.hf import load_hf, save_hf
from entropy_rl.models.hf_config import config_json, read_config
from entropy_rl.models.hf_tensors import read_checkpoint_config
from entropy_rl.models.lora import Base, LoraSpec, init_adapter, lora_spec, on_base

__all__ = [
    "Base",
    "DecoderConfig",
    "LoraConfig",
    "LoraSpec",
    "backbone_params",
    "config_json",
    "init_adapter",
    "load_hf",
    "lora_spec",
    "make_policy",
    "on_base",
    "read_checkpoint_config",
    "read_config",
    "save_hf",
]
