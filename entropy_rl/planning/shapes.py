"""Architecture of the planned model, from its config.json or a table of public models."""

from __future__ import annotations

from typing import NamedTuple

from entropy_rl.config.lora import LoraConfig
from entropy_rl.config.plan import PlanConfig, PlanSFTConfig
from entropy_rl.config.values import unknown
from entropy_rl.models import DecoderConfig, read_config
from entropy_rl.models.lora import LoraSpec, check_rank, lora_spec
from entropy_rl.models.rope import Llama3RopeScaling
from entropy_rl.runs.model_files import find_model, model_files
from entropy_rl.runs.weights import make_adapter

_QWEN2 = dict(head_dim=128, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, qk_norm=False)
_QWEN3 = dict(head_dim=128, rope_theta=1e6, norm_eps=1e-6, qkv_bias=False, qk_norm=True)
_LLAMA3 = dict(head_dim=128, rope_theta=5e5, norm_eps=1e-5, qkv_bias=False, qk_norm=False)

# Vocabulary, hidden size, MLP, layers, heads and KV heads, as in config.json of the models
# https://huggingface.co/Qwen/Qwen2.5-0.5B, Qwen/Qwen2.5-1.5B, Qwen/Qwen2.5-7B, Qwen/Qwen3-0.6B,
# Qwen/Qwen3-8B, meta-llama/Llama-3.1-8B and HuggingFaceTB/SmolLM2-135M.
SHAPES = {
    "qwen2.5-0.5b": DecoderConfig(
        151936, 896, 4864, 24, 14, 2, tie_embeddings=True, **_QWEN2 | {"head_dim": 64}
    ),
    "qwen2.5-1.5b": DecoderConfig(151936, 1536, 8960, 28, 12, 2, tie_embeddings=True, **_QWEN2),
    "qwen2.5-7b": DecoderConfig(152064, 3584, 18944, 28, 28, 4, tie_embeddings=False, **_QWEN2),
    "qwen3-0.6b": DecoderConfig(151936, 1024, 3072, 28, 16, 8, tie_embeddings=True, **_QWEN3),
    "qwen3-8b": DecoderConfig(151936, 4096, 12288, 36, 32, 8, tie_embeddings=False, **_QWEN3),
    "llama3-8b": DecoderConfig(
        128256,
        4096,
        14336,
        32,
        32,
        8,
        tie_embeddings=False,
        rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 8192),
        **_LLAMA3,
    ),
    "smollm2-135m": DecoderConfig(
        49152,
        576,
        1536,
        30,
        9,
        3,
        tie_embeddings=True,
        **_LLAMA3 | {"head_dim": 64, "rope_theta": 1e5},
    ),
}


class Architecture(NamedTuple):
    """Architectures of a run's models.

    Attributes:
      policy: Architecture of the policy.
      critic: Architecture of the critic's backbone; None without a critic.
      lora: The adapter that is trained; None to train all parameters.
      teacher: Architecture of the teacher; None without one.
    """

    policy: DecoderConfig
    critic: DecoderConfig | None = None
    lora: LoraSpec | None = None
    teacher: DecoderConfig | None = None


def find_architecture(config: PlanConfig) -> Architecture:
    """Return the architectures of the models of a config.

    Args:
      config: The config. A shape takes precedence over the path of the model.

    Raises:
      ValueError: If a model has neither a config.json nor a shape, or there is no such shape.
    """
    (policy, spec), critic = find_policy(config), config.critic
    of_critic, of_teacher = critic and policy, None
    if critic is not None and critic.path is not None:
        of_critic = _find("critic", critic.path, "critic_shape", config.critic_shape)
    if config.teacher is not None:
        of_teacher = _find("teacher", config.teacher.path, "teacher_shape", config.teacher_shape)
    return Architecture(policy, of_critic, spec, of_teacher)


def find_policy(config: PlanConfig | PlanSFTConfig) -> tuple[DecoderConfig, LoraSpec | None]:
    """Return the architecture of the model of a config, and of its adapter or None.

    Raises:
      ValueError: If it has neither a config.json nor a shape, or there is no such shape.
    """
    check_shapes(config)
    policy = _find("model", config.model.path, "shape", config.shape)
    return policy, _find_adapter(config.model.lora, policy)


def _find_adapter(config: LoraConfig | None, decoder: DecoderConfig) -> LoraSpec | None:
    if config is None:
        return None
    if config.path is not None:
        return make_adapter(config, decoder, None)[0]
    spec = lora_spec(config)
    check_rank(spec, decoder)
    return spec


def check_shapes(config: PlanConfig | PlanSFTConfig) -> None:
    """Check the names of shapes.

    Raises:
      ValueError: There is no such shape.
    """
    for option in ("shape", "critic_shape", "teacher_shape"):
        shape = getattr(config, option, None)
        if shape is not None and shape not in SHAPES:
            raise ValueError(unknown(option, shape, SHAPES))


def _find(section: str, path: str, option: str, shape: str | None) -> DecoderConfig:
    if shape is not None:
        return SHAPES[shape]
    try:
        found = find_model(path, weights=False, field=f"{section}.path")
        return read_config(model_files(found))
    except ValueError as error:
        shapes = "|".join(SHAPES)
        raise ValueError(f"{error}; or --{option} {shapes} without the files") from None
