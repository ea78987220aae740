"""Measures of the units of a study: what a run ended with, and means over the seeds of an arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from entropy_rl.config.study import BASE, FlagsConfig
from entropy_rl.config.values import unknown
from entropy_rl.evaluation import Evaluation, read_result
from entropy_rl.report.curves import metric_values, running_mean
from entropy_rl.runs.stored import METRICS_FILE, read_metrics
from entropy_rl.studies.grid import EVALUATE, TRAIN, Design, Unit
from entropy_rl.studies.records import ProblemTally, read_problems

# Mean over seeds, low and high end of its 95% interval, number of seeds.
SeedMean = tuple[float, float, float, int]

CONFIDENCE = 0.95  # of the intervals of arms; a hypothesis has its own
CURVES = ("entropy", "length", "bonus_share")  # metrics of training that are drawn
_TOKENS = "sampled_tokens"
_LAST_STEPS = 10  # averaged for the final value of a training metric


class UnitResult(NamedTuple):
    """Results of a complete unit.

    Attributes:
      evaluation: The evaluation after the last step.
      problems: Problem id -> its tally.
      metrics: Metric -> f64[steps], its values in training; empty for the arm `base`.
    """

    evaluation: Evaluation
    problems: dict[int, ProblemTally]
    metrics: Mapping[str, np.ndarray]


def read_unit(design: Design, unit: Unit) -> UnitResult:
    """Read the results of a complete unit.

    Raises:
      ValueError: Its evaluation is missing or cannot be read.
    """
    directory = design.directory_of(unit)
    evaluation = read_result(directory / EVALUATE)
    if evaluation is None:
        raise ValueError(
            f"{directory / EVALUATE}: must hold the evaluation of a complete run, got none"
        )
    steps = read_metrics(directory / TRAIN / METRICS_FILE)
    rows = design.train.rollout.prompts * design.train.rollout.group_size
    metrics = {}
    if steps:  # of hundreds of metrics, for thousands of steps and hundreds of units
        metrics = {name: metric_values(steps, name) for name in CURVES}
        # With dynamic sampling the number of rows varies, and the step records its tokens.
        sampled = [step.get("tokens_sampled", step["length"] * rows) for step in steps]
        metrics[_TOKENS] = np.array(sampled, np.float64)
    return UnitResult(evaluation, read_problems(directory), metrics)


def measures_of(result: UnitResult) -> dict[str, float]:
    """Measures of a unit that are reported in addition to the endpoints: name -> value.

    From the evaluation: `pass@K` at those K for which every judged problem has enough samples, so
    that seeds are averaged over the same problems; `length`, `entropy`, `truncated`,
    `unique_answers` of a task with answers, and `skill/...`. From training:
    `final_entropy`, the mean over the last 10 steps, and `tokens`, the tokens sampled in all steps
    (without exploration and greedy completions).
    """
    evaluation = result.evaluation
    measures = {f"pass@{k}": value[0] for k, value in evaluation.pass_at_k_of_all.items()}
    measures |= {"length": evaluation.mean_length[0], "entropy": evaluation.mean_entropy[0]}
    measures |= {"truncated": evaluation.truncated}
    if evaluation.unique_answers is not None:
        measures["unique_answers"] = evaluation.unique_answers[0]
    measures |= {f"skill/{name}": value for name, value in evaluation.skill.items()}
    if result.metrics:
        last = result.metrics["entropy"][-_LAST_STEPS:]
        measures["final_entropy"] = float(running_mean(last, len(last))[0])
        measures["tokens"] = float(sum(result.metrics[_TOKENS].tolist()))
    return measures


def mean_over_seeds(measures: Sequence[Mapping[str, float]]) -> dict[str, SeedMean]:
    """Mean of each measure over seeds, with Student's t interval: mean ± t s / √seeds.

    Intervals of shares are cut at 0 and 1, where the mean cannot be beyond; so are those of skills,
    which a task defines, if all their values are in [0, 1].

    Args:
      measures: The measures of each seed, from `measures_of`.

    Returns:
      Measure -> (mean, low, high, seeds), over the seeds that have it. With one seed the interval
      is unbounded, because the variance between seeds is unknown.
    """
    means = {}
    for name in dict.fromkeys(name for of_seed in measures for name in of_seed):
        values = np.array([of_seed[name] for of_seed in measures if name in of_seed], np.float64)
        half_width = math.inf
        if len(values) > 1:
            t = stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
            half_width = float(t * values.std(ddof=1) / math.sqrt(len(values)))
        mean = float(values.mean())
        low, high = mean - half_width, mean + half_width
        if _is_share(name, values) and len(values) > 1:
            low, high = max(low, 0.0), min(high, 1.0)
        means[name] = (mean, low, high, len(values))
    return means


def _is_share(name: str, values: np.ndarray) -> bool:
    if name.startswith("skill/"):
        return bool(((values >= 0) & (values <= 1)).all())
    return name.startswith("pass@") or name in ("truncated", "unique_answers")


def find_flags(config: FlagsConfig, results: Mapping[Unit, UnitResult]) -> dict[str, list[str]]:
    """Find the arms with a doubtful run: arm -> one sentence for each reason.

    The skill is compared with that of `base`; without its result, `base` says so.
    """
    base = next((measures_of(result) for unit, result in results.items() if unit.arm == BASE), {})
    skill = f"skill/{config.skill}"
    flags: dict[str, list[str]] = {}
    if results and not base and config.skill is not None:
        flags[BASE] = [f"skill: not checked, {BASE} is missing"]
    if base and config.skill is not None and skill not in base:
        skills = [name.removeprefix("skill/") for name in base if name.startswith("skill/")]
        flags[BASE] = [unknown("flags.skill", config.skill, skills)]
    for arm in dict.fromkeys(unit.arm for unit in results):
        runs = {
            unit.seed: measures_of(result) for unit, result in results.items() if unit.arm == arm
        }
        if skill in base:
            drops = {seed: base[skill] - m[skill] for seed, m in runs.items() if skill in m}
            drops = {seed: drop for seed, drop in drops.items() if drop > config.skill_drop}
            if drops:
                flags.setdefault(arm, []).append(
                    f"{config.skill} fell by up to {max(drops.values()):.3f} below the policy "
                    f"before training (limit {config.skill_drop}) in {_seeds(drops)}: the loss of "
                    "skill affects its Pass@K"
                )
        truncated = {
            seed: m["truncated"] for seed, m in runs.items() if m["truncated"] > config.truncated
        }
        if truncated:
            flags.setdefault(arm, []).append(
                f"up to {max(truncated.values()):.3f} of the responses were truncated (limit "
                f"{config.truncated}) in {_seeds(truncated)}: its lengths are censored"
            )
    return flags


def _seeds(seeds: Mapping[int, float]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, sorted(seeds)))}"
