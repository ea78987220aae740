"""Sampling completions: prompts in, tokens with their log-probs and entropies out."""

from entropy_rl.rollout.chunks import Stage, StopRule
from entropy_rl.rollout.decode import sample_keys
from entropy_rl.rollout.generate import GenerateFn, make_generate

__all__ = ["GenerateFn", "Stage", "StopRule", "make_generate", "sample_keys"]
