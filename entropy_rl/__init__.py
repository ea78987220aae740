"""Reinforcement learning of language-model reasoning in JAX, with entropy-shaped advantages.

The functional core, ready for notebooks. Everything is a pure function over arrays and pytrees:

    model     = load_model(ModelConfig(path=...))             policy, parameters, tokenizer
    generate  = make_generate(model.policy, ...)              prompts -> Rollout
    advantage = chain(group_normalize(...), shape_by_entropy(...))
    update    = make_update(model.policy, advantage, ...)     (state, batch) -> (state, metrics)

Importing this package touches no device and loads neither transformers nor data libraries; a name is
imported when it is first used.
"""

import importlib
from typing import Any

from entropy_rl.version import __version__

# name -> module it lives in
_PUBLIC = {
    # models
    "load_model": "loading",
    "Model": "loading",
    "ModelConfig": "config",
    "load_hf": "models",
    "save_hf": "models",
    "make_policy": "models",
    "DecoderConfig": "models",
    # sampling
    "make_generate": "rollout",
    "ScheduleConfig": "sampling_config",
    "StopStrings": "stop_strings",
    "Prompts": "prompts",
    # verdicts
    "load_task": "tasks",
    "Problem": "tasks",
    "Verdict": "tasks",
    "score": "scoring",
    # advantages
    "Transform": "advantages",
    "chain": "advantages",
    "group_normalize": "advantages",
    "group_center": "advantages",
    "leave_one_out": "advantages",
    "greedy_baseline": "advantages",
    "whiten": "advantages",
    "shape_by_entropy": "advantages",
    "amplify_by_entropy": "advantages",
    "misplace_entropy_bonus": "advantages",
    "scale_by_sign": "advantages",
    "unbounded_entropy_bonus": "advantages",
    "length_weighted_center": "advantages",
    "rescaled_group_center": "advantages",
    "pass_at_k_normalize": "advantages",
    "best_minus_second": "advantages",
    "quantile_normalize": "advantages",
    "asymmetric_normalize": "advantages",
    "favor_rare_correct": "advantages",
    "mine_solved_groups": "advantages",
    "token_entropy_rewards": "advantages",
    "row_entropy_rewards": "advantages",
    "gae": "advantages",
    "length_adaptive_gae": "advantages",
    "overlong_penalty": "advantages",
    "entropy_dynamics_reward": "advantages",
    "offline_divergence_reward": "advantages",
    "repeated_error_penalty": "advantages",
    "two_mode_bonus": "advantages",
    "external_token_weight": "advantages",
    # surrogates
    "Surrogate": "surrogates",
    "ClipMasks": "surrogates",
    "no_clips": "surrogates",
    "build_surrogate": "surrogates",
    "ppo_clip": "surrogates",
    "unclipped": "surrogates",
    "flexible_clip": "surrogates",
    "flexible_clip_id": "surrogates",
    "flexible_clip_did": "surrogates",
    "flexible_clip_od": "surrogates",
    "gspo": "surrogates",
    "gmpo": "surrogates",
    "s_trace": "surrogates",
    "cispo": "surrogates",
    "sapo": "surrogates",
    "dppo_tv": "surrogates",
    "ce_gppo": "surrogates",
    "gppo": "surrogates",
    # token selections and weights
    "Selection": "selection",
    "TokenWeights": "selection",
    "build_selection": "selection",
    "forking_tokens": "selection",
    "erc": "selection",
    "opefo": "selection",
    "clip_cov": "selection",
    "kl_cov": "selection",
    "token_tis": "selection",
    "sequence_tis": "selection",
    "icepop": "selection",
    "geometric_rejection": "selection",
    # log-probs, losses, updates
    "log_prob_and_entropy": "distributions",
    "log_prob_and_entropy_from_logits": "distributions",
    "fused_head_loss": "fused_loss",
    "policy_loss": "losses",
    "kl_estimate": "losses",
    "token_weights": "losses",
    "LossConfig": "config",
    "Memory": "memory",
    "adaptive_entropy": "entropy_control",
    "lagged_adaptive_entropy": "entropy_control",
    "loss_memory": "loss_memory",
    "Revisit": "revisits",
    "policy_improvement": "revisits",
    "advantage_replay": "revisits",
    "RewardConfig": "config",
    "make_batch": "train_step",
    "make_stats_pass": "train_step",
    "make_gradient": "train_step",
    "make_update": "train_step",
    "mean_metrics": "update_metrics",
    "init_state": "train_step",
    # the critic of PPO
    "CriticConfig": "config",
    "init_critic": "critic_step",
    "make_values_pass": "critic_step",
    "make_critic_gradient": "critic_step",
    "make_critic_update": "critic_step",
    "mean_critic_metrics": "critic_step",
    "lambda_returns": "returns",
    "value_loss": "losses",
    # statistics
    "pass_at_k": "passk",
    "pass_at_k_curve": "passk",
    "bootstrap_interval": "passk",
    "paired_bootstrap": "significance",
    "sign_flip_p_value": "significance",
    "holm": "significance",
    "distinct_ngrams": "diversity",
    "repetition_rate": "diversity",
    "majority_vote": "diversity",
    "pass_at_budget": "comparison",
    "pass_at_k_at_equal_length": "comparison",
    # values
    "Policy": "types",
    "Rollout": "types",
    "TokenStats": "types",
    "TrainBatch": "types",
    "TrainState": "types",
    "CriticState": "types",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'entropy_rl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"entropy_rl.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
