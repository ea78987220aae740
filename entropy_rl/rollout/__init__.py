"""Sampling: completions of prompts, with log-probs and entropies."""

from entropy_rl.rollout.chunks import DecodingProgress, StopRule
from entropy_rl.rollout.decode import sample_keys
from entropy_rl.rollout.episodes import Environments
from entropy_rl.rollout.generate import GenerateFn, make_generate

__all__ = [
    "DecodingProgress",
    "Environments",
    "GenerateFn",
    "StopRule",
    "make_generate",
    "sample_keys",
]
