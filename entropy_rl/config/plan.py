"""The configuration of a plan: that of the run, and what it is planned for."""

from __future__ import annotations

import dataclasses

from entropy_rl.config.checks import require
from entropy_rl.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A training run, planned without its devices, weights and data: `entropy-rl plan`.

    Args:
      topology: A TPU slice, such as v5e:4x4 or v5p:2x2x4, for the real TPU compiler.
      devices: Instead, so many virtual devices of this CPU.
      chip: With devices, the chip whose memory and rates each is taken to have: v4, v5e, v5p, v6e,
        h100 or h200.
      shape: The architecture where model.path is not there: qwen2.5-1.5b, qwen2.5-7b, qwen3-8b,
        llama3-8b.
      critic_shape: As shape, where critic.path is not there.
      mean_new_tokens: Tokens of every completion in the estimate of time; null for
        rollout.max_new_tokens.
      efficiency: Share of the peak rates that is taken to be reached; with 1 times are lower
        bounds.
      search: Meshes and micro-batches are tried; so many, the fastest by the shapes, are compiled.
        0 plans the config as it is.
      output: A JSON file for all numbers; null for none.
    """

    topology: str | None = None
    devices: int | None = None
    chip: str | None = None
    shape: str | None = None
    critic_shape: str | None = None
    mean_new_tokens: float | None = None
    efficiency: float = 1.0
    search: int = 0
    output: str | None = None

    def __post_init__(self):
        super().__post_init__()
        require(
            (self.topology is None) != (self.devices is None),
            "topology",
            self.topology,
            "set if and only if devices is null",
        )
        require(self.devices is None or self.devices >= 1, "devices", self.devices, "null or >= 1")
        require(
            self.chip is None or self.devices is not None,
            "chip",
            self.chip,
            "null without devices",
        )
        own = self.critic is not None and self.critic.path is not None
        require(
            self.critic_shape is None or own,
            "critic_shape",
            self.critic_shape,
            "null without critic.path",
        )
        require(0 < self.efficiency <= 1, "efficiency", self.efficiency, "> 0 and <= 1")
        require(self.search >= 0, "search", self.search, ">= 0")
        longest, mean = self.rollout.max_new_tokens, self.mean_new_tokens
        require(
            mean is None or 1 <= mean <= longest,
            "mean_new_tokens",
            mean,
            f"null or from 1 to {longest}",
        )
