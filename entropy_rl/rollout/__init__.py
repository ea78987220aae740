"""Sampling: completions of prompts, with log-probs and entropies."""

from entropy_rl.rollout.chunks import DecodingProgress, StopRule
from entropy_rl.rollout.decode import sample_keys
from entropy_rl.rollout.generate import GenerateFn, make_generate

__all__ = ["DecodingProgress", "GenerateFn", "StopRule", "make_generate", "sample_keys"]
