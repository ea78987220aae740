"""Configuration of LoRA: the section `model.lora`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from entropy_rl.config.checks import check_numbers, require
from entropy_rl.config.values import unknown

# The matrices of a layer, in the order of the computation.
LORA_TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (arXiv 2106.09685): y = x W + s (x A) B, with a frozen W.

    Args:
      rank: Rank r of A [in, r] and B [r, out]; null with `path`, which has one.
      alpha: The scale s is alpha / rank, or alpha / sqrt(rank) with `rslora`; null with `path`.
      targets: The matrices of a layer that get an adapter; null for all seven, or for those of
        `path`.
      rslora: Scale by alpha / sqrt(rank) (arXiv 2312.03732); `path` has its own.
      path: A PEFT adapter to begin from: a directory or a Hub id; null for a new one, which
        changes nothing before its first update (B = 0).
      base_dtype: Type in which the frozen parameters are stored: float32; bfloat16, which rounds a
        float32 model; int8 or nf4 (QLoRA, arXiv 2305.14314), which quantize the matrices of the
        layers and store the rest in bfloat16.
    """

    rank: int | None = None
    alpha: float | None = None
    targets: list[str] | None = dataclasses.field(default=None, hash=False)
    rslora: bool = False
    path: str | None = None
    base_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"

    def __post_init__(self):
        check_numbers(self, "model.lora")
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            kind = "an integer >= 1" if name == "rank" else "> 0"
            if self.path is None:
                require(value is not None, f"model.lora.{name}", value, f"{kind} without a path")
            else:
                reason = f"null with model.lora.path, which has its own {name}"
                require(value is None, f"model.lora.{name}", value, reason)
        require(self.rank is None or self.rank >= 1, "model.lora.rank", self.rank, ">= 1")
        require(self.alpha is None or self.alpha > 0, "model.lora.alpha", self.alpha, "> 0")
        if self.path is not None:
            reason = "with model.lora.path, which has its own"
            require(self.targets is None, "model.lora.targets", self.targets, f"null {reason}")
            require(not self.rslora, "model.lora.rslora", self.rslora, f"false {reason}")
        if self.targets is None:
            return
        require(len(self.targets) > 0, "model.lora.targets", self.targets, "null or not empty")
        for i, name in enumerate(self.targets):
            if name not in LORA_TARGETS:
                raise ValueError(unknown(f"model.lora.targets[{i}]", name, LORA_TARGETS))
        once = len(set(self.targets)) == len(self.targets)
        require(once, "model.lora.targets", self.targets, "names that differ")
