"""The configuration of the supervised warm start."""

from __future__ import annotations

import dataclasses
import operator

from entropy_rl.config.checks import require, require_at_least
from entropy_rl.config.rollout import EvaluationConfig
from entropy_rl.config.train import OptimizerConfig, RunConfig, TaskConfig


@dataclasses.dataclass(frozen=True)
class ArchitectureConfig:
    """A decoder to train from scratch, of the Qwen3 family (no bias, normalized queries and keys).

    Args:
      hidden_size: Width (D).
      intermediate_size: Width of the gated MLP.
      num_layers: Layers (L).
      num_heads: Query heads (H).
      num_kv_heads: Key and value heads (K).
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int

    def __post_init__(self):
        names = [field.name for field in dataclasses.fields(self)]
        require_at_least(1, "architecture.", self, *names)
        require(
            self.hidden_size % (2 * self.num_heads) == 0,
            "architecture.hidden_size",
            self.hidden_size,
            f"a multiple of twice architecture.num_heads ({self.num_heads})",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            "architecture.num_kv_heads",
            self.num_kv_heads,
            f"a divisor of architecture.num_heads ({self.num_heads})",
        )


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """What a warm start must have learned before RL may begin; shares are of emitted steps or
    completions.

    Args:
      at_least: Measure -> smallest allowed value.
      at_most: Measure -> largest allowed value.
    """

    at_least: dict[str, float] = dataclasses.field(default_factory=dict)
    at_most: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Supervised training on a task's own demonstrations: `entropy-rl sft`.

    Args:
      seed: Fixes the weights before the first step and the demonstrations.
      steps: Optimizer steps.
      batch_size: Demonstrations per step.
      length_buckets: Lengths to pad to, growing.
      architecture: The model.
      task: A task with demonstrations.
      optimizer: Learning rate after the warm-up; it falls to `final_rate` of it along a cosine.
      run: Where and how often.
      final_rate: Share of the learning rate at the last step.
      gate: What the result must be able to do; a warning names what it cannot.
      evaluation: Sampling for the gate; null for none.
    """

    seed: int
    steps: int
    batch_size: int
    length_buckets: list[int]
    architecture: ArchitectureConfig
    task: TaskConfig
    optimizer: OptimizerConfig
    run: RunConfig
    final_rate: float = 0.02
    gate: GateConfig = GateConfig()
    evaluation: EvaluationConfig | None = None

    def __post_init__(self):
        require_at_least(0, "", self, "seed")
        require_at_least(1, "", self, "steps", "batch_size")
        require(
            len(self.length_buckets) > 0
            and sorted(set(self.length_buckets)) == list(self.length_buckets),
            "length_buckets",
            self.length_buckets,
            "a list of increasing lengths",
        )
        require(0 <= self.final_rate <= 1, "final_rate", self.final_rate, ">= 0 and <= 1")
        for path, usual in (
            ("run.evaluate_every", RunConfig.evaluate_every),
            ("run.samples_per_step", RunConfig.samples_per_step),
            ("optimizer.offload", OptimizerConfig.offload),
            ("task.train_split", TaskConfig.train_split),
        ):
            value = operator.attrgetter(path)(self)
            require(value == usual, path, value, f"{usual!r}, because SFT does not use it")
