"""Reinforcement learning of language-model reasoning in JAX, with entropy-shaped advantages.

The functional core, ready for notebooks. Everything is a pure function over arrays and pytrees:

    model     = load_model(ModelConfig(path=...))             policy, parameters, tokenizer
    generate  = make_generate(model.policy, ...)              prompts -> Rollout
    advantage = chain(group_normalize(...), shape_by_entropy(...))
    update    = make_update(model.policy, advantage, ...)     (state, batch) -> (state, metrics)

Importing this package touches no device and loads neither transformers nor data libraries; a name
is imported when it is first used.
"""

import importlib
from typing import Any

from entropy_rl.version import __version__

# name -> module it lives in
_PUBLIC = {
    # models
    "load_model": "runs.load_model",
    "Model": "runs.load_model",
    "ModelConfig": "config.train",
    "load_hf": "models",
    "save_hf": "models",
    "make_policy": "models",
    "DecoderConfig": "models",
    # sampling
    "make_generate": "rollout",
    "DecodingConfig": "config.rollout",
    "StopStrings": "rollout.stop_strings",
    "Prompts": "experience.prompts",
    # verdicts
    "load_task": "tasks",
    "Problem": "tasks",
    "Verdict": "tasks",
    "score": "experience.scoring",
    # advantages
    "Transform": "advantages",
    "chain": "advantages",
    "group_normalize": "advantages",
    "group_center": "advantages",
    "rloo": "advantages",
    "remax": "advantages",
    "whiten": "advantages",
    "shape_by_entropy": "advantages",
    "eapo": "contrib",
    "misplace_entropy_bonus": "contrib",
    "scale_by_sign": "contrib",
    "unbounded_entropy_bonus": "contrib",
    "opo": "advantages",
    "gpg": "advantages",
    "pass_at_k_training": "contrib",
    "grpo_passk": "contrib",
    "qae": "contrib",
    "asymgrpo": "contrib",
    "ucpo": "contrib",
    "miner": "contrib",
    "gtpo": "contrib",
    "grpo_s": "contrib",
    "gae": "advantages",
    "length_adaptive_gae": "contrib",
    "overlong_penalty": "advantages",
    "heal_reward": "contrib",
    "oger_reward": "contrib",
    "meds_reward": "contrib",
    "policy_split_bonus": "contrib",
    "external_token_weight": "contrib",
    # surrogates
    "Surrogate": "losses",
    "ClipMasks": "losses",
    "no_clips": "losses",
    "build_surrogate": "losses",
    "ppo_clip": "losses",
    "unclipped": "losses",
    "flexible_clip": "contrib",
    "flexible_clip_id": "contrib",
    "flexible_clip_did": "contrib",
    "flexible_clip_od": "contrib",
    "gspo": "losses",
    "gmpo": "losses",
    "s_trace": "contrib",
    "cispo": "losses",
    "sapo": "losses",
    "dppo_tv": "losses",
    "ce_gppo": "losses",
    "gppo": "losses",
    # token token weightings and weights
    "TokenWeighting": "losses",
    "TokenWeights": "losses",
    "build_token_weighting": "losses",
    "forking_tokens": "losses",
    "erc": "losses",
    "opefo": "contrib",
    "clip_cov": "losses",
    "kl_cov": "losses",
    "token_tis": "losses",
    "sequence_tis": "losses",
    "icepop": "losses",
    "geometric_rejection": "losses",
    # log-probs, losses, updates
    "log_prob_and_entropy": "lm_head.log_probs",
    "log_prob_and_entropy_from_logits": "lm_head.log_probs",
    "fused_head_loss": "lm_head.fused_loss",
    "policy_loss": "losses.policy",
    "kl_estimate": "losses.policy",
    "aggregation_weights": "losses.policy",
    "LossConfig": "config.train",
    "Controller": "losses.controller",
    "adaptive_entropy": "losses.controllers",
    "lagged_adaptive_entropy": "losses.controllers",
    "loss_controller": "losses.build",
    "Replay": "learner.replay_rule",
    "pipo": "contrib",
    "uec_replay": "contrib",
    "RewardConfig": "config.train",
    "make_batch": "learner.update",
    "make_stats_pass": "learner.update",
    "make_gradient": "learner.update",
    "make_update": "learner.update",
    "mean_metrics": "learner.metrics",
    "init_state": "learner.update",
    # the critic of PPO
    "CriticConfig": "config.train",
    "init_critic": "learner.critic",
    "make_values_pass": "learner.critic",
    "make_critic_gradient": "learner.critic",
    "make_critic_update": "learner.critic",
    "mean_critic_metrics": "learner.critic",
    "lambda_returns": "advantages.returns",
    "value_loss": "losses.policy",
    # statistics
    "pass_at_k": "stats.pass_at_k",
    "pass_at_k_curve": "stats.pass_at_k",
    "bootstrap_interval": "stats.pass_at_k",
    "paired_bootstrap": "stats.bootstrap",
    "sign_flip_p_value": "stats.bootstrap",
    "holm": "stats.bootstrap",
    "distinct_ngrams": "stats.diversity",
    "repetition_rate": "stats.diversity",
    "majority_vote": "stats.diversity",
    "pass_at_budget": "stats.matched",
    "pass_at_k_at_equal_length": "stats.matched",
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
