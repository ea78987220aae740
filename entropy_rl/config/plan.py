"""Configuration of `entropy-rl plan` and `plan-sft`: a run's config and the target hardware."""

from __future__ import annotations

import dataclasses

from entropy_rl.config.checks import require
from entropy_rl.config.files import expand_home
from entropy_rl.config.sft import SFTConfig
from entropy_rl.config.stack import check_member
from entropy_rl.config.train import TrainConfig

MOST_DEVICES = 2**16  # each has an object; the largest pods have about 10,000 chips


@dataclasses.dataclass(frozen=True)
class Target:
    """What a plan is for, in addition to the config of a run.

    Args:
      topology: TPU topology, such as v5e:4x4 or v5p:2x2x4; uses the TPU compiler.
      devices: Number of virtual CPU devices, instead of a topology.
      chip: With devices, the chip whose memory and peak rates to assume: v4, v5e, v5p, v6e, h100,
        h200, a100-40, a100-80, l4, rtx4090 or t4.
      shape: Architecture, in place of that of model.path, which need not exist then: qwen2.5-0.5b,
        qwen2.5-1.5b, qwen2.5-7b, qwen3-0.6b, qwen3-8b, llama3-8b, smollm2-135m.
      efficiency: Fraction of the peak rates to assume; with 1, times are lower bounds.
      output: JSON file for all numbers; null for none.
    """

    topology: str | None = None
    devices: int | None = None
    chip: str | None = None
    shape: str | None = None
    efficiency: float = 1.0
    output: str | None = None

    def __post_init__(self):
        super().__post_init__()  # of the config of the run
        expand_home(self, "output")
        require(
            (self.topology is None) != (self.devices is None),
            "topology",
            self.topology,
            "set if and only if devices is null",
        )
        require(
            self.devices is None or 1 <= self.devices <= MOST_DEVICES,
            "devices",
            self.devices,
            f"null or 1 to {MOST_DEVICES}",
        )
        require(
            self.chip is None or self.devices is not None,
            "chip",
            self.chip,
            "null without devices",
        )
        require(0 < self.efficiency <= 1, "efficiency", self.efficiency, "> 0 and <= 1")


@dataclasses.dataclass(frozen=True)
class PlanConfig(Target, TrainConfig):
    """Plan a training run without its devices, weights and data: `entropy-rl plan`.

    Args:
      critic_shape: Architecture in place of that of critic.path; see shape.
      teacher_shape: Architecture in place of that of teacher.path; see shape.
      mean_new_tokens: Mean completion length for the time estimate; null for
        rollout.max_new_tokens.
      search: Number of candidates to compile, the fastest by their shapes among all meshes and
        micro-batch sizes; 0 plans the config as given.
      stacked: Number of runs with this config that `train-stacked` trains on one device.
    """

    critic_shape: str | None = None
    teacher_shape: str | None = None
    mean_new_tokens: float | None = None
    search: int = 0
    stacked: int = 1

    @property
    def new_tokens(self) -> float:
        """Assumed tokens per completion."""
        return self.mean_new_tokens or self.rollout.max_new_tokens

    def __post_init__(self):
        super().__post_init__()
        require(self.stacked >= 1, "stacked", self.stacked, ">= 1")
        if self.stacked > 1:
            check_member(self)
            require(self.search == 0, "search", self.search, "0 for runs that train together")
        own = self.critic is not None and self.critic.path is not None
        require(
            self.critic_shape is None or own,
            "critic_shape",
            self.critic_shape,
            "null without critic.path",
        )
        require(
            self.teacher_shape is None or self.teacher is not None,
            "teacher_shape",
            self.teacher_shape,
            "null without teacher",
        )
        require(self.search >= 0, "search", self.search, ">= 0")
        longest, mean = self.rollout.max_new_tokens, self.mean_new_tokens
        require(
            mean is None or 1 <= mean <= longest,
            "mean_new_tokens",
            mean,
            f"null or from 1 to {longest}",
        )


@dataclasses.dataclass(frozen=True)
class PlanSFTConfig(Target, SFTConfig):
    """Plan supervised training on conversations without its devices, weights and data:
    `entropy-rl plan-sft`.

    Args:
      mean_tokens: Mean tokens of a row for the time estimate; null for the longest.
      mean_targets: Those of them that are trained on; null for all.
    """

    mean_tokens: float | None = None
    mean_targets: float | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest row that the run could have: longer ones fit no micro-batch."""
        return min(self.data.max_tokens, self.batching.max_tokens_per_micro_batch)

    def __post_init__(self):
        super().__post_init__()
        require(
            self.data is not None,
            "data",
            None,
            "given: what is planned is training on conversations or pairs",
        )
        mean, targets = self.mean_tokens, self.mean_targets
        require(
            mean is None or 1 <= mean <= self.longest,
            "mean_tokens",
            mean,
            f"null or from 1 to {self.longest}, the longest row",
        )
        most = mean or self.longest
        require(
            targets is None or 1 <= targets <= most,
            "mean_targets",
            targets,
            f"null or from 1 to {most:g}, the tokens of a row",
        )
