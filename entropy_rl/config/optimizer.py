"""Configuration of the optimizer and its learning-rate schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from entropy_rl.config.checks import check_numbers, require, require_at_least

# optimizer -> settings that it does not use
_UNUSED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "adamw": (),
        "adafactor": ("b1", "b2", "eps", "first_moment_dtype"),
        "muon": (),
        "lion": ("eps",),
        "sgd": ("b2", "eps"),
    }
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer of optax with gradient clipping, a linear warm-up and a schedule.

    Args:
      learning_rate: Learning rate after the warm-up.
      warmup_updates: Linear warm-up steps n; step i of them has the rate i/n * learning_rate.
      weight_decay: Decoupled weight decay of all parameters: embeddings, norms and biases too.
      b1: Decay of the first moment; the momentum of `muon` and `sgd`.
      b2: Decay of the second moment, or of the momentum of `lion`.
      eps: Added to the square root of the second moment.
      max_grad_norm: Gradient clipping by global norm.
      first_moment_dtype: Dtype of the stored first moment; bfloat16 saves 2 of 16 bytes per
        parameter of AdamW. The second moment stays float32: it changes by a thousandth per update,
        which bfloat16 would round away.
      offload: Keep the moments in host memory during sampling and judging. Changes memory and
        speed, not results.
      name: The optimizer: `adamw`; `adafactor` with factored second moments and without momentum
        (arXiv 1804.04235); `muon` for the matrices of the layers, with the root mean square of
        AdamW's updates (arXiv 2502.16982), and AdamW with Nesterov momentum for all other
        parameters; `lion` (arXiv 2302.06675), whose rate is usually 3 to 10 times smaller; `sgd`
        with momentum `b1`.
      schedule: Learning rate after the warm-up: `constant`, or a `linear` or `cosine` decay to
        `final_rate`.
      final_rate: Fraction of the learning rate at the end of the decay.
      decay_updates: Number of the update, counted from 1 and with the warm-up, at which the decay
        ends, later than the warm-up; null for the last update of the run, whose `steps` then cannot
        be changed on resumption.
    """

    learning_rate: float
    warmup_updates: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    offload: bool = False
    name: Literal["adamw", "adafactor", "muon", "lion", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_rate: float = 0.0
    decay_updates: int | None = None

    def __post_init__(self):
        check_numbers(self, "optimizer")
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "> 0")
        require_at_least(0, "optimizer.", self, "warmup_updates", "weight_decay")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", value, ">= 0 and < 1")
        require(self.eps > 0, "optimizer.eps", self.eps, "> 0")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "> 0")
        rate = self.final_rate
        require(0 <= rate <= 1, "optimizer.final_rate", rate, ">= 0 and <= 1")
        require_at_least(1, "optimizer.", self, "decay_updates")
        # Otherwise the update after the warm-up would have the final rate already.
        check_decay(self, self.warmup_updates, "optimizer.warmup_updates")
        # A setting without an effect is an error.
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        unused = {name: f"optimizer {self.name}" for name in _UNUSED[self.name]}
        if self.schedule == "constant":
            unused |= dict.fromkeys(("final_rate", "decay_updates"), "a constant schedule")
        for name, user in unused.items():
            value, usual = getattr(self, name), fields[name]
            require(
                value == usual,
                f"optimizer.{name}",
                value,
                f"{'null' if usual is None else usual}, because {user} does not use it",
            )


def check_decay(config: OptimizerConfig, warmup_updates: int, field: str) -> None:
    """Check that a decay with a given end ends behind a warm-up.

    Args:
      config: The optimizer, with the end of the decay.
      warmup_updates: Of the policy or the critic.
      field: The config field of these.
    """
    last = config.decay_updates
    is_behind = last is None or last > warmup_updates
    must_be = f"null or > {warmup_updates}, which is {field}"
    require(is_behind, "optimizer.decay_updates", last, must_be)


@dataclasses.dataclass(frozen=True)
class SFTOptimizerConfig(OptimizerConfig):
    """The optimizer of supervised fine-tuning: a cosine decay by default; see `OptimizerConfig`."""

    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final_rate: float = 0.02
