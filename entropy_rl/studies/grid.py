"""The grid of a study: its units (an arm with a seed), and the commands that run them."""

from __future__ import annotations

import dataclasses
import json
import operator
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from entropy_rl.cli.parse import parse_config, recipe_arguments
from entropy_rl.config.checks import at_place, require
from entropy_rl.config.evaluate import EvaluateConfig
from entropy_rl.config.stack import check_stack
from entropy_rl.config.study import BASE, RecipeConfig, StudyConfig, pass_at
from entropy_rl.config.train import TrainConfig
from entropy_rl.trainer.check_config import build_methods

TRAIN, EVALUATE = "train", "evaluate"  # phases of a unit; each is a command
_CONFIGS: Mapping[str, type] = MappingProxyType({TRAIN: TrainConfig, EVALUATE: EvaluateConfig})
# Fields that the study sets.
_OWN = {TRAIN: ("seed", "run.directory"), EVALUATE: ("seed", "model.path", "output")}


@dataclasses.dataclass(frozen=True)
class Unit:
    """An arm with a seed. The arm `base` has one unit, whose seed is the evaluation's."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def phases(self) -> tuple[str, ...]:
        """The commands that run it, in order."""
        return (EVALUATE,) if self.arm == BASE else (TRAIN, EVALUATE)


@dataclasses.dataclass(frozen=True)
class Design:
    """The registered design of a study: its config, and the resolved configs it builds on.

    Attributes:
      study: The config of the study.
      train: The training config that all arms share.
      evaluate: The evaluation config of the arm `base`.
    """

    study: StudyConfig
    train: TrainConfig
    evaluate: EvaluateConfig

    @property
    def directory(self) -> Path:
        """Directory of the study."""
        return Path(self.study.output)

    def seeds(self, arm: str) -> list[int]:
        """The registered seeds of an arm."""
        return (
            self.study.seeds[:1] if arm == BASE else self.study.seeds_of.get(arm, self.study.seeds)
        )

    def units(self) -> list[Unit]:
        """All units: `base`, then the arms of hypotheses, then the others, each seed by seed.

        An interrupted study thus has the arms that decide its hypotheses, for some of the seeds.
        """
        named = {
            arm
            for hypothesis in self.study.registered()
            for arm in (hypothesis.arm, hypothesis.against)
        }
        tested = [arm for arm in self.study.arms if arm in named]
        others = [arm for arm in self.study.arms if arm not in named]
        return [Unit(BASE, self.seeds(BASE)[0]), *self._by_seed(tested), *self._by_seed(others)]

    def _by_seed(self, arms: Sequence[str]) -> list[Unit]:
        seeds = dict.fromkeys(seed for arm in arms for seed in self.seeds(arm))
        return [Unit(arm, seed) for seed in seeds for arm in arms if seed in self.seeds(arm)]

    def config_of(self, arm: str) -> TrainConfig:
        """Return the training config of an arm, with its first seed."""
        return _parse(self.study, Unit(arm, self.seeds(arm)[0]), TRAIN, "train", "")

    def directory_of(self, unit: Unit) -> Path:
        """Directory of a unit: train/, evaluate/, and its records."""
        return self.directory / "runs" / unit.arm / str(unit.seed)

    def arguments(self, unit: Unit, phase: str) -> list[str]:
        """Command-line arguments of a phase, after `entropy-rl`."""
        return _arguments(self.study, unit, phase, self.directory_of(unit), self.train.model.path)

    def command(self, units: Sequence[Unit], phase: str) -> list[str]:
        """Command-line arguments of a phase of one unit, or of several that train together."""
        if len(units) == 1:
            return self.arguments(units[0], phase)
        recipes = [_recipe(self.study, unit, TRAIN, self.directory_of(unit), "") for unit in units]
        return ["train-stacked", "--runs", json.dumps([vars(recipe) for recipe in recipes])]


def design(config: StudyConfig) -> Design:
    """Resolve every config of a study, and check its settings and methods.

    What the runs need beside them, `check_inputs` checks.

    Raises:
      ValueError: A config is invalid; the message begins with its place in the study.
    """
    for name, recipe in ((TRAIN, config.train), (EVALUATE, config.evaluate)):
        _check_overrides(f"{name}.overrides", recipe.overrides, name)
    shared = _parse(config, Unit(BASE, config.seeds[0]), TRAIN, "train", "")
    for arm, overrides in config.arms.items():
        _check_overrides(f"arms.{arm}", overrides, TRAIN)
        of_arm = _parse(config, Unit(arm, config.seeds[0]), TRAIN, f"arms.{arm}", "")
        with at_place(f"arms.{arm}"):
            build_methods(of_arm)
        require(
            of_arm.model == shared.model,
            f"arms.{arm}",
            of_arm.model.path,
            f"the model of all arms ({shared.model.path})",
        )
        # All arms see the same prompts and draw as many samples; those of dynamic sampling are
        # counted separately.
        for path in ("steps", "rollout.prompts", "rollout.group_size"):
            ours, theirs = map(operator.attrgetter(path), (of_arm, shared))
            require(ours == theirs, f"arms.{arm}.{path}", ours, f"{theirs}, as in all arms")
    evaluate = _parse(config, Unit(BASE, config.seeds[0]), EVALUATE, "evaluate", shared.model.path)
    require(evaluate.task is not None, "evaluate.task", None, "given: the arm base is no run")
    for i, hypothesis in enumerate(config.registered()):
        k = pass_at(hypothesis.endpoint)
        require(
            k is None or k <= evaluate.evaluation.samples,
            f"hypotheses[{i}].endpoint",
            hypothesis.endpoint,
            f"pass@K with K <= evaluation.samples ({evaluate.evaluation.samples})",
        )
    found = Design(config, shared, evaluate)
    if config.stacked > 1:
        with at_place("stacked"):
            check_stack(
                [_parse(config, unit, TRAIN, "", "") for unit in found.units() if unit.arm != BASE]
            )
    return found


def command_line(arguments: list[str]) -> str:
    """Format a command for a shell."""
    return shlex.join(["entropy-rl", *arguments])


def _arguments(
    study: StudyConfig, unit: Unit, phase: str, directory: Path, model: str
) -> list[str]:
    recipe = _recipe(study, unit, phase, directory, model)
    return [phase, *recipe_arguments(_CONFIGS[phase], recipe.config, recipe.overrides)]


def _recipe(
    study: StudyConfig, unit: Unit, phase: str, directory: Path, model: str
) -> RecipeConfig:
    if phase == TRAIN:
        # The study evaluates every run; evaluations during training would repeat that.
        overrides = {"evaluation": None} | study.train.overrides | study.arms.get(unit.arm, {})
        own = {"seed": unit.seed, "run.directory": str(directory / TRAIN)}
        return RecipeConfig(study.train.config, overrides | own)
    path = model if unit.arm == BASE else str(directory / TRAIN)
    own = {"seed": unit.seed, "model.path": path, "output": str(directory / EVALUATE)}
    return RecipeConfig(study.evaluate.config, study.evaluate.overrides | own)


def _parse(study: StudyConfig, unit: Unit, phase: str, where: str, model: str) -> Any:
    directory = Path(study.output) / unit.arm / str(unit.seed)
    recipe = _recipe(study, unit, phase, directory, model)
    with at_place(where):
        return parse_config(
            _CONFIGS[phase], phase, ["--config", recipe.config], overrides=recipe.overrides
        )


def _check_overrides(where: str, overrides: Mapping[str, Any], phase: str) -> None:
    for path in overrides:
        if path in _OWN[phase] or path in ("config", "print_config"):
            raise ValueError(f"{where}.{path}: must not be set here; the study sets it")
