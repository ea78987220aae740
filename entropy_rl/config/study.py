"""Configuration of a study: a grid of training configs and seeds, and registered hypotheses."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from entropy_rl.config.checks import check_numbers, require
from entropy_rl.config.files import expand_home
from entropy_rl.config.registry import call_factory
from entropy_rl.config.values import unknown

BASE = "base"  # the untrained arm
ENDPOINTS = ("pass@K", "length", "entropy", "truncated")


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """A config file of another verb, with overrides.

    Args:
      config: YAML file.
      overrides: Dotted path -> value.
    """

    config: str
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FlagsConfig:
    """Conditions that flag an arm in the report. Flags do not change verdicts.

    Args:
      skill: A skill measure of the task, a fraction; null for none.
      skill_drop: Flag runs whose skill is lower than that of the arm `base` by more than this.
      truncated: Flag runs with a larger fraction of truncated responses, whose lengths are
        censored.
    """

    skill: str | None = None
    skill_drop: float = 0.02
    truncated: float = 1.0

    def __post_init__(self):
        check_numbers(self, "flags")
        for name in ("skill_drop", "truncated"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"flags.{name}", value, ">= 0 and <= 1")


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A registered hypothesis: after the last step, `endpoint` of `arm` exceeds that of `against`.

    Args:
      name: Name.
      claim: The hypothesis in words.
      arm: An arm.
      against: The arm to compare with.
      endpoint: `pass@K`; or of the responses, `length` (tokens), `entropy` (nats per token) or
        `truncated` (fraction).
      smallest_effect: Smallest difference of interest, for the equivalence verdict.
      alpha: Level of the test after Holm's correction; the interval covers 1 - alpha.
    """

    name: str
    claim: str
    arm: str
    against: str
    endpoint: str
    smallest_effect: float
    alpha: float = 0.05


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A grid of training runs with verdicts on registered hypotheses: `entropy-rl study`.

    Args:
      train: Training config shared by all arms.
      evaluate: Evaluation config, applied to every arm after its last step.
      arms: Arm -> dotted path -> value: overrides of `train`. The untrained arm `base` is implicit.
      seeds: Seeds of every arm. All arms of a seed see the same prompts in the same order.
      hypotheses: Registered hypotheses, each as {name, claim, arm, against, endpoint,
        smallest_effect} and optionally alpha (0.05).
      output: Directory of the study: runs, study.json, study.md and figures.
      seeds_of: Arm -> seeds, instead of `seeds`.
      flags: Conditions that flag an arm in the report.
      do: run executes what is missing and writes the report; plan prints what is missing; report
        writes the report of what is complete.
      parallel: Number of concurrent runs on the same devices. Useful if one run does not fill them:
        a small model on a large GPU (with XLA_PYTHON_CLIENT_PREALLOCATE=false, to share its
        memory), or several CPU cores, which are divided among the runs.
      only: Arms to run now; empty for all.
      stacked: Number of LoRA runs that are trained together on one frozen base, as by
        `entropy-rl train-stacked`; 1 trains each by itself.
    """

    train: RecipeConfig
    evaluate: RecipeConfig
    arms: dict[str, dict[str, Any]]
    seeds: list[int]
    hypotheses: list[dict[str, Any]]
    output: str
    seeds_of: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    flags: FlagsConfig = FlagsConfig()
    do: Literal["run", "plan", "report"] = "run"
    parallel: int = 1
    only: list[str] = dataclasses.field(default_factory=list)
    stacked: int = 1

    def __post_init__(self):
        check_numbers(self, "")
        expand_home(self, "output")
        require(bool(self.output), "output", self.output, "a path")
        require(self.parallel >= 1, "parallel", self.parallel, ">= 1")
        require(self.stacked >= 1, "stacked", self.stacked, ">= 1")
        require(bool(self.arms), "arms", self.arms, "at least one arm")
        for arm in self.arms:
            require(
                isinstance(arm, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", arm) and arm != BASE,
                "arms", arm, f"a name of letters, digits, '_', '-' and '.', other than {BASE!r}",
            )  # fmt: skip
        for arm in self.seeds_of:
            if arm not in self.arms:
                raise ValueError(unknown("seeds_of", arm, self.arms))
        for path, seeds in (
            ("seeds", self.seeds),
            *((f"seeds_of.{a}", s) for a, s in self.seeds_of.items()),
        ):
            require(
                bool(seeds) and min(seeds) >= 0 and len(set(seeds)) == len(seeds),
                path, seeds, "a non-empty list of distinct integers >= 0",
            )  # fmt: skip
        for arm in self.only:
            if arm not in (BASE, *self.arms):
                raise ValueError(unknown("only", arm, (BASE, *self.arms)))
        names = [hypothesis.name for hypothesis in self.registered()]
        require(len(set(names)) == len(names), "hypotheses", names, "a list with distinct names")

    def registered(self) -> list[Hypothesis]:
        """Return the validated hypotheses."""
        found = []
        for i, plain in enumerate(self.hypotheses):
            path = f"hypotheses[{i}]"
            hypothesis = call_factory(Hypothesis, plain, path)
            for field in ("arm", "against"):
                if getattr(hypothesis, field) not in (BASE, *self.arms):
                    raise ValueError(
                        unknown(f"{path}.{field}", getattr(hypothesis, field), (BASE, *self.arms))
                    )
            require(
                hypothesis.arm != hypothesis.against,
                f"{path}.against",
                hypothesis.against,
                "another arm",
            )
            seeds = [
                set(self.seeds_of.get(arm, self.seeds))
                for arm in (hypothesis.arm, hypothesis.against)
                if arm != BASE
            ]
            require(
                bool(set.intersection(*seeds)),
                f"{path}.against",
                hypothesis.against,
                f"an arm that shares a seed with {hypothesis.arm!r}",
            )
            require(
                hypothesis.endpoint in ENDPOINTS[1:] or pass_at(hypothesis.endpoint) is not None,
                f"{path}.endpoint",
                hypothesis.endpoint,
                f"one of {', '.join(ENDPOINTS)}",
            )
            require(
                hypothesis.smallest_effect > 0,
                f"{path}.smallest_effect",
                hypothesis.smallest_effect,
                "> 0",
            )
            require(0 < hypothesis.alpha < 1, f"{path}.alpha", hypothesis.alpha, "> 0 and < 1")
            found.append(hypothesis)
        return found


def pass_at(endpoint: str) -> int | None:
    """Return K of an endpoint `pass@K`; None for other endpoints."""
    found = re.fullmatch(r"pass@([1-9]\d*)", endpoint)
    return int(found[1]) if found else None
