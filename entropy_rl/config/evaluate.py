"""Configuration of `entropy-rl evaluate`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.common import MeshConfig, ModelConfig, TaskConfig
from entropy_rl.config.files import expand_home
from entropy_rl.config.rollout import DecodingConfig, EvaluationConfig, check_stop
from entropy_rl.config.values import refuse_unused


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Pass@K of a model: `entropy-rl evaluate`.

    Args:
      seed: Seed of all samples.
      model: A Hugging Face directory or id, `asset:NAME`, or the directory of a run (its newest
        checkpoint).
      evaluation: Sampling.
      output: Directory for the result and all samples.
      task: Problems and verifier; null for the task of the run that `model` names.
      max_prompt_tokens: Prompts with more tokens are excluded and counted.
      decoding: Continuous batching of the samples.
      shard: Index of the problems shard of this process, 0 .. shards - 1; null for the process
        index of jax.distributed.
      shards: Number of processes that share the problems and `output`; null for the process count
        of jax.distributed. May change between starts.
      mesh: Device mesh of one process: samples are sharded over data and fsdp, a model too large
        for one device over tensor.
    """

    UNUSED: ClassVar = ("task.train_split", "model.remat")  # of sections that others share

    seed: int
    model: ModelConfig
    evaluation: EvaluationConfig
    output: str
    task: TaskConfig | None = None
    max_prompt_tokens: int = 1024
    decoding: DecodingConfig = DecodingConfig()
    shard: int | None = None
    shards: int | None = None
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        check_numbers(self, "")
        expand_home(self, "output")
        require_at_least(0, "", self, "seed")
        check_stop(self.evaluation.stop, "evaluation.stop", self.decoding)
        refuse_unused(self, "", "because an evaluation does not use it", *self.UNUSED)
        require(
            (self.shard is None) == (self.shards is None),
            "shard",
            self.shard,
            "set if and only if shards is",
        )
        if self.shards is not None:
            require(
                0 <= self.shard < self.shards,
                "shard",
                self.shard,
                f">= 0 and < shards ({self.shards})",
            )
