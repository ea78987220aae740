"""Names of other libraries for fields of a config, and the field to suggest for an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from entropy_rl.config.values import leaf_fields

_GROUP_SIZE = ("rollout.group_size", "evaluation.samples")
_MAX_NEW_TOKENS = ("rollout.max_new_tokens", "evaluation.max_new_tokens", "max_new_tokens")
_MAX_PROMPT_TOKENS = ("rollout.max_prompt_tokens", "max_prompt_tokens")
_CLIP = ("loss.surrogate.clip_high", "critic.clip_range")
_OUTPUT = ("run.directory", "output")
_EPS = ("optimizer.eps", "loss.surrogate.clip_low")
_MICRO_BATCH = ("batching.max_tokens_per_micro_batch",)
_MODEL = ("model.path",)

# A name that people bring from TRL, verl, OpenRLHF, transformers or optax -> the fields that it may
# mean, the likeliest first. A field with the very name in another section needs no entry.
SYNONYMS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "adam_beta1": ("optimizer.b1",),
        "adam_beta2": ("optimizer.b2",),
        "adam_epsilon": ("optimizer.eps",),
        "alpha": ("advantage.1.alpha",),
        "attn": ("model.attention",),
        "attn_implementation": ("model.attention",),
        "batch_size": ("batch_size", "rollout.prompts"),
        "beta": ("loss.kl_coef",),
        "beta1": ("optimizer.b1",),
        "beta2": ("optimizer.b2",),
        "bf16": ("model.compute_dtype",),
        "clip_eps": _CLIP,
        "clip_grad": ("optimizer.max_grad_norm",),
        "clip_ratio": _CLIP,
        "cliprange": _CLIP,
        "critic_lr": ("critic.learning_rate",),
        "data": ("task.args.train",),
        "dataset": ("task.args.train",),
        "dataset_name": ("task.args.train",),
        "dtype": ("model.compute_dtype",),
        "ent_coef": ("loss.entropy_coef",),
        "entropy_bonus": ("loss.entropy_coef",),
        "entropy_coeff": ("loss.entropy_coef",),
        "eps": _EPS,
        "epsilon": _EPS,
        "epsilon_high": ("loss.surrogate.clip_high",),
        "epsilon_low": ("loss.surrogate.clip_low",),
        "eval_every": ("run.evaluate_every",),
        "eval_steps": ("run.evaluate_every",),
        "fsdp_size": ("mesh.fsdp",),
        "grad_clip": ("optimizer.max_grad_norm",),
        "gradient_checkpointing": ("model.remat",),
        "group_size": _GROUP_SIZE,
        "iterations": ("steps",),
        "kappa": ("advantage.1.kappa",),
        "kl_beta": ("loss.kl_coef",),
        "kl_coeff": ("loss.kl_coef",),
        "kl_loss_coef": ("loss.kl_coef",),
        "kl_penalty": ("loss.kl_coef",),
        "lambda": ("critic.lam",),
        "lr": ("optimizer.learning_rate",),
        "lr_schedule": ("optimizer.schedule",),
        "lr_scheduler": ("optimizer.schedule",),
        "lr_scheduler_type": ("optimizer.schedule",),
        "max_completion_length": _MAX_NEW_TOKENS,
        "max_length": _MAX_NEW_TOKENS,
        "max_norm": ("optimizer.max_grad_norm",),
        "max_prompt_length": _MAX_PROMPT_TOKENS,
        "max_response_length": _MAX_NEW_TOKENS,
        "max_steps": ("steps",),
        "max_tokens": _MAX_NEW_TOKENS,
        "micro_batch_size": _MICRO_BATCH,
        "mini_batch_size": ("batching.mini_batch_prompts",),
        "minibatch_size": ("batching.mini_batch_prompts",),
        "model_name": _MODEL,
        "model_name_or_path": _MODEL,
        "model_path": _MODEL,
        "momentum": ("optimizer.b1",),
        "n": _GROUP_SIZE,
        "num_generations": _GROUP_SIZE,
        "num_return_sequences": _GROUP_SIZE,
        "num_samples": ("evaluation.samples", "rollout.group_size"),
        "num_steps": ("steps",),
        "num_train_steps": ("steps",),
        "optim": ("optimizer.name",),
        "out": _OUTPUT,
        "output": _OUTPUT,
        "output_dir": _OUTPUT,
        "per_device_train_batch_size": _MICRO_BATCH,
        "ppo_mini_batch_size": ("batching.mini_batch_prompts",),
        "project": ("run.wandb_project", "run.loggers.0.project"),
        "random_seed": ("seed",),
        "report_to": ("run.loggers",),
        "reward_fn": ("rewards",),
        "reward_funcs": ("rewards",),
        "reward_function": ("rewards",),
        "reward_functions": ("rewards",),
        "reward_weights": ("rewards.0.weight",),
        "run_name": ("run.directory",),
        "save_dir": ("run.directory",),
        "save_every": ("run.checkpoint_every",),
        "save_freq": ("run.checkpoint_every",),
        "save_steps": ("run.checkpoint_every",),
        "save_total_limit": ("run.max_to_keep",),
        "temp": ("rollout.temperature", "evaluation.temperature", "temperature"),
        "test_freq": ("run.evaluate_every",),
        "torch_dtype": ("model.compute_dtype",),
        "total_steps": ("steps",),
        "tp": ("mesh.tensor",),
        "train_batch_size": ("rollout.prompts", "batch_size"),
        "train_file": ("task.args.train",),
        "train_files": ("task.args.train",),
        "vf_lr": ("critic.learning_rate",),
        "wandb": ("run.wandb_project",),
        "logger": ("run.loggers",),
        "tensorboard": ("run.loggers",),
        "warmup": ("optimizer.warmup_updates",),
        "warmup_steps": ("optimizer.warmup_updates",),
        "wd": ("optimizer.weight_decay",),
    }
)


def suggested_field(cls: type, path: Sequence[str]) -> str | None:
    """Return the dotted path of the field that an unknown name probably means.

    Args:
      cls: The config class.
      path: The names of the dotted path, of which the last one is unknown in its section.

    Returns:
      A field of the class: one that `SYNONYMS` has for the name; else one of that name in another
      section, those of the section given first; else one of another section whose name is similar,
      unless a name of the section itself is. None if there is none.
    """
    *section, name = path
    fields = [field for field, _ in leaf_fields(cls)]
    names = [field.rpartition(".")[2] for field in fields]
    found = [f for f in SYNONYMS.get(name.lower().replace("-", "_"), ()) if _is_field(f, fields)]
    found += [field for field, last in zip(fields, names, strict=True) if last == name]
    if found:
        here = ".".join([*section, ""])
        return min(found, key=lambda field: not (here and field.startswith(here)))
    depth = len(section)
    siblings = [f.split(".")[depth] for f in fields if f.split(".")[:depth] == list(section)]
    if difflib.get_close_matches(name[:100], siblings, n=1):
        return None
    near = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.75)
    return fields[names.index(near[0])] if near else None


def _is_field(path: str, fields: Sequence[str]) -> bool:
    """Whether a path is one of the fields, or inside a list or mapping that is one."""
    return any(path == field or path.startswith(f"{field}.") for field in fields)
