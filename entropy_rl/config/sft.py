"""Configuration of supervised fine-tuning (SFT)."""

from __future__ import annotations

import dataclasses
import operator

from entropy_rl.config.checks import MOST_LAYERS, check_numbers, require, require_at_least
from entropy_rl.config.common import RunConfig, TaskConfig
from entropy_rl.config.optimizer import SFTOptimizerConfig
from entropy_rl.config.rollout import EvaluationConfig


@dataclasses.dataclass(frozen=True)
class ArchitectureConfig:
    """A Qwen3-style decoder to train from scratch (no bias, normalized queries and keys).

    Args:
      hidden_size: Hidden size (D).
      intermediate_size: Hidden size of the gated MLP.
      num_layers: Number of layers (L).
      num_heads: Number of query heads (H).
      num_kv_heads: Number of key-value heads (K).
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int

    def __post_init__(self):
        check_numbers(self, "architecture")
        names = [field.name for field in dataclasses.fields(self)]
        require_at_least(1, "architecture.", self, *names)
        require(
            self.num_layers <= MOST_LAYERS,
            "architecture.num_layers",
            self.num_layers,
            f"at most {MOST_LAYERS}",
        )
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
    """Minimum quality of the SFT model; measures are fractions of steps or of completions.

    Args:
      at_least: Measure -> minimum.
      at_most: Measure -> maximum.
    """

    at_least: dict[str, float] = dataclasses.field(default_factory=dict)
    at_most: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on the demonstrations of a task: `entropy-rl sft`.

    Args:
      seed: Seed of the initial weights and of the demonstrations.
      steps: Optimizer steps.
      batch_size: Demonstrations per step.
      length_buckets: Padded lengths, increasing.
      architecture: The model.
      task: A task with demonstrations.
      optimizer: The optimizer and its learning-rate schedule, by default AdamW with a cosine decay.
      run: Run directory, checkpoints and logging.
      gate: Minimum quality of the result; measures that miss it are reported, with exit code 1.
      evaluation: Evaluation for the gate; null for none.
    """

    seed: int
    steps: int
    batch_size: int
    length_buckets: list[int]
    architecture: ArchitectureConfig
    task: TaskConfig
    optimizer: SFTOptimizerConfig
    run: RunConfig
    gate: GateConfig = GateConfig()
    evaluation: EvaluationConfig | None = None

    def __post_init__(self):
        check_numbers(self, "")
        require_at_least(0, "", self, "seed")
        require_at_least(1, "", self, "steps", "batch_size")
        require(
            len(self.length_buckets) > 0
            and sorted(set(self.length_buckets)) == list(self.length_buckets),
            "length_buckets",
            self.length_buckets,
            "a list of increasing lengths",
        )
        for path, usual in (
            ("run.evaluate_every", RunConfig.evaluate_every),
            ("run.samples_per_step", RunConfig.samples_per_step),
            ("optimizer.offload", SFTOptimizerConfig.offload),
            ("task.train_split", TaskConfig.train_split),
        ):
            value = operator.attrgetter(path)(self)
            require(value == usual, path, value, f"{usual!r}, because SFT does not use it")
