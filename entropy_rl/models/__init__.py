"""Decoders as a `Policy`, and reading and writing Hugging Face checkpoints."""

from entropy_rl.models.decoder import DecoderConfig, backbone_params, make_policy
from entropy_rl.models.hf import load_hf, save_hf
from entropy_rl.models.hf_config import config_json, read_config
from entropy_rl.models.hf_tensors import read_checkpoint_config

__all__ = [
    "DecoderConfig",
    "backbone_params",
    "config_json",
    "load_hf",
    "make_policy",
    "read_checkpoint_config",
    "read_config",
    "save_hf",
]
