"""Configuration of sampling: rollouts, evaluations and continuous batching."""

from __future__ import annotations

import dataclasses
from typing import Literal

from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.values import refuse_unused


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """Continuous batching of a rollout: how many rows are decoded side by side.

    If every row has a slot, finished rows are compacted away. With fewer slots than rows, the
    other rows wait in a queue and take the slots of finished ones. Changes memory use and speed;
    the sampled tokens stay the same, log-probs and entropies up to rounding.

    Args:
      slots: Rows decoded side by side; null for as many as fit into memory.
      memory_share: Fraction of device memory that the KV cache may take if `slots` is null.
      chunk_steps: Decode steps between host synchronizations, at which the cache grows, progress
        is shown, and stop strings and signals are handled; null runs the rollout as one program.
    """

    slots: int | None = None
    memory_share: float = 0.4
    chunk_steps: int | None = 128

    def __post_init__(self):
        check_numbers(self, "decoding")
        require_at_least(1, "decoding.", self, "slots", "chunk_steps")
        if self.slots is not None:
            refuse_unused(self, "decoding.", "because decoding.slots is set", "memory_share")
        require(
            0 < self.memory_share <= 1, "decoding.memory_share", self.memory_share, "> 0 and <= 1"
        )


def check_sampling(section: str, temperature: float, top_p: float) -> None:
    """Check the settings of a sampler; temperature 0 is greedy."""
    require(temperature >= 0, f"{section}temperature", temperature, ">= 0")
    require(0 < top_p <= 1, f"{section}top_p", top_p, "> 0 and <= 1")


def check_stop(stop: list[str], path: str, decoding: DecodingConfig) -> None:
    """Check that decoding synchronizes with the host, which searches for stop strings."""
    require(
        not stop or decoding.chunk_steps is not None,
        path,
        stop,
        "empty if decoding.chunk_steps is null",
    )


@dataclasses.dataclass(frozen=True)
class DynamicSamplingConfig:
    """Dynamic sampling (DAPO, arXiv 2503.14476).

    Groups whose rewards are all equal have zero advantage. They are dropped, and further prompts
    are sampled in rounds of `rollout.prompts` until the step has its number of groups.

    Args:
      max_rounds: Maximum rounds per step; DAPO's recipe has 10. A run that stopped at this limit
        can resume with a larger one.
      at_limit: At the limit, `error` ends the run, as DAPO's reference does; `train` trains on the
        groups found and masks the other rows of the step.
    """

    max_rounds: int = 10
    at_limit: Literal["error", "train"] = "error"

    def __post_init__(self):
        check_numbers(self, "rollout.dynamic_sampling")
        require_at_least(1, "rollout.dynamic_sampling.", self, "max_rounds")


@dataclasses.dataclass(frozen=True)
class ExplorationConfig:
    """Resample prompts without a correct completion at a higher temperature (UEC-RL).

    Source: arXiv 2604.14646. The new G completions replace the failed ones as a group of their own;
    completions below its mean reward and groups with equal rewards are masked out of the loss.

    Args:
      temperature: Sampling temperature, above `rollout.temperature`, which the trainer keeps. The
        authors' code has 1.2.
    """

    temperature: float


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Sampling during training.

    Args:
      prompts: Prompts per step.
      group_size: Completions per prompt (G).
      max_prompt_tokens: Prompts with more tokens are excluded and counted.
      max_new_tokens: Maximum tokens of a completion, including the end-of-sequence token.
      temperature: Sampling temperature, in the sampler and the trainer.
      top_p: Nucleus sampling mass; 1 samples from the whole distribution. Log-probs are those of
        the untruncated distribution, so with top_p < 1 they are not those of the sampling policy.
      stop: Stop strings; a completion ends with the token that completes one.
      dynamic_sampling: Dynamic sampling; null trains on all groups.
      exploration: Resampling of failed prompts; null for none.
    """

    prompts: int
    group_size: int
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: list[str] = dataclasses.field(default_factory=list)
    dynamic_sampling: DynamicSamplingConfig | None = None
    exploration: ExplorationConfig | None = None

    def __post_init__(self):
        check_numbers(self, "rollout")
        require_at_least(
            1, "rollout.", self, "prompts", "group_size", "max_prompt_tokens", "max_new_tokens"
        )
        alone = "null if rollout.group_size is 1, because a group of one has no contrast"
        for name in ("dynamic_sampling", "exploration"):
            value = getattr(self, name)
            require(value is None or self.group_size > 1, f"rollout.{name}", value, alone)
        hotter = self.exploration is None or self.exploration.temperature > self.temperature
        found = self.exploration and self.exploration.temperature
        allowed = f"> rollout.temperature ({self.temperature})"
        require(hotter, "rollout.exploration.temperature", found, allowed)
        require(self.temperature > 0, "rollout.temperature", self.temperature, "> 0")
        check_sampling("rollout.", self.temperature, self.top_p)
        require(all(self.stop), "rollout.stop", self.stop, "a list of non-empty strings")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Sampling for Pass@K.

    Args:
      split: Split of the task.
      problems: Number of problems, from the start of the split; null for all.
      samples: Samples per problem (n). Pass@K is reported for K = 1, 2, 4, ... up to n, each over
        the problems with at least K judged samples.
      max_new_tokens: Maximum tokens of a completion.
      temperature: Sampling temperature.
      top_p: Nucleus sampling mass.
      stop: Stop strings; a completion ends with the token that completes one.
      rows_per_call: Completions per sampling call; they are judged while the next call samples.
        Changes memory and speed; log-probs and entropies change only in the last digits.
    """

    split: str
    samples: int
    max_new_tokens: int
    problems: int | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    stop: list[str] = dataclasses.field(default_factory=list)
    rows_per_call: int = 1024

    def __post_init__(self):
        check_numbers(self, "evaluation")
        names = ("samples", "max_new_tokens", "problems", "rows_per_call")
        require_at_least(1, "evaluation.", self, *names)
        check_sampling("evaluation.", self.temperature, self.top_p)
        require(all(self.stop), "evaluation.stop", self.stop, "a list of non-empty strings")
