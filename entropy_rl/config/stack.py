"""Configuration of `entropy-rl train-stacked`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from entropy_rl.config.checks import require
from entropy_rl.config.registry import call_factory
from entropy_rl.config.study import RecipeConfig
from entropy_rl.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """LoRA runs that are trained together on one frozen base: `entropy-rl train-stacked`.

    Args:
      runs: The runs, each as {config: FILE, overrides: {PATH: VALUE, ...}}: a training config, and
        dotted paths of settings that it changes, such as seed, advantage and run.directory. They
        must agree in model, task, rollout, decoding, mesh, number of steps and the intervals of
        checkpoints and evaluations; docs/guides/lora.md has all conditions.
    """

    runs: list[dict[str, Any]]

    def __post_init__(self):
        require(len(self.runs) >= 2, "runs", self.runs, "a list of at least two runs")
        self.recipes()

    def recipes(self) -> list[RecipeConfig]:
        """Return the validated entries."""
        return [call_factory(RecipeConfig, run, f"runs[{i}]") for i, run in enumerate(self.runs)]


# What the runs of a stack have in common.
_SHARED = ("model", "task", "rollout", "decoding", "mesh", "steps")


def check_stack(configs: Sequence[TrainConfig]) -> None:
    """Check that the configs of runs allow that they are trained together.

    Raises:
      ValueError: If they do not.
    """
    first = configs[0]
    for i, config in enumerate(configs):
        where, run = f"runs[{i}]", config.run
        check_member(config, f"{where}.")
        for name in _SHARED:
            ours, same = getattr(config, name), getattr(config, name) == getattr(first, name)
            require(same, f"{where}.{name}", ours, "the same in all runs that train together")
        # A checkpoint is saved before an evaluation too: those of all runs are of the same steps.
        for name in ("checkpoint_every", "evaluate_every"):
            value, same = getattr(run, name), getattr(first.run, name)
            require(value == same, f"{where}.run.{name}", value, f"{same}, as in all")
        same = (config.evaluation is None) == (first.evaluation is None)
        require(same, f"{where}.evaluation", config.evaluation, "given in all runs or in none")
    directories = [os.path.abspath(config.run.directory) for config in configs]
    for i, directory in enumerate(directories):
        is_new = directory not in directories[:i]
        require(is_new, f"runs[{i}].run.directory", directory, "another one for each run")


def check_devices(count: int) -> None:
    """Check the number of devices of runs that train together.

    Raises:
      ValueError: If there are several.
    """
    require(count == 1, "mesh", f"{count} devices", "one device for runs that train together")


def check_member(config: TrainConfig, where: str = "") -> None:
    """Check that a config allows that its run is trained together with others.

    Args:
      config: The config.
      where: Prefix of its settings in messages.

    Raises:
      ValueError: If it does not.
    """
    require(config.model.lora is not None, f"{where}model.lora", None, "the section of LoRA")
    nothing = {
        "teacher": config.teacher,
        "rollout.dynamic_sampling": config.rollout.dynamic_sampling,
        "rollout.exploration": config.rollout.exploration,
        "task.episodes": config.task.episodes,
    }
    for name, value in nothing.items():
        require(value is None, f"{where}{name}", value, "null in runs that train together")
    # Killed runs go on from the newest step that all of them have saved.
    keep = config.run.max_to_keep
    require(keep >= 2, f"{where}run.max_to_keep", keep, ">= 2 in runs that train together")
