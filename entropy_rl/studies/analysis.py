"""From the complete units of a study to verdicts on its hypotheses, whatever is there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from entropy_rl.config.registry import unknown
from entropy_rl.config.study import BASE, FlagsConfig, Hypothesis
from entropy_rl.evaluation import Evaluation, read_result
from entropy_rl.report.curves import metric_values, running_mean
from entropy_rl.runs.directory import METRICS_FILE
from entropy_rl.runs.jsonl import finite, read_jsonl
from entropy_rl.stats.bootstrap import crossed_bootstrap, holm
from entropy_rl.studies.grid import EVALUATE, TRAIN, Design, Unit
from entropy_rl.studies.records import ProblemTally, Record, read_problems, read_record
from entropy_rl.studies.runner import is_complete

Decision = Literal["supports", "contradicts", "no material effect", "not settled"]
Interval = tuple[
    float, float, float, int
]  # mean over seeds, its 95% interval, and how many seeds there are

_LAST_STEPS = 10  # over which what training ends with is averaged
_CONFIDENCE = 0.95  # of the intervals of arms; a hypothesis has its own


class Result(NamedTuple):
    """A complete unit: its evaluation, problem by problem, and the metrics of its training, step
    by step.
    """

    evaluation: Evaluation
    problems: dict[int, ProblemTally]
    metrics: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How an arm differs from another in an endpoint.

    Attributes:
      difference: Mean of arm - against, with the interval `low` to `high` of `crossed_bootstrap`;
        NaN where there are no data.
      low: See `difference`.
      high: See `difference`.
      p_value: Of "no difference"; 1 without data.
      arm_mean: Of the endpoint.
      against_mean: Of the endpoint.
      seeds: Seeds that both have, on which all this rests.
      seeds_registered: How many it is to be.
      problems: Problems with an endpoint in all of these.
      problems_left_out: Those with too few judged samples in one of them.
    """

    difference: float
    low: float
    high: float
    p_value: float
    arm_mean: float
    against_mean: float
    seeds: int
    seeds_registered: int
    problems: int
    problems_left_out: int


@dataclasses.dataclass(frozen=True)
class Finding(Difference):
    """What is known of a hypothesis.

    Attributes:
      hypothesis: The hypothesis, as registered.
      decision: By the rule of `decide`; "not settled" where there are no data.
      p_adjusted: p after Holm's correction over all registered hypotheses.
    """

    hypothesis: Hypothesis
    decision: Decision
    p_adjusted: float

    @property
    def is_final(self) -> bool:
        """Whether all registered seeds are in."""
        return self.seeds == self.seeds_registered


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What a study says so far.

    Attributes:
      records: Unit -> how far it is.
      results: Unit -> its result, of those that are complete.
      measures: Arm -> measure -> mean over the seeds of the arm, with an interval.
      flags: Arm -> sentences that make its result doubtful; arms without are not there.
      findings: One for each hypothesis, in the order of the config.
      beside: Arm -> endpoint of a hypothesis -> its difference from what the first hypothesis holds
        its arm
        against: nothing that was registered, and without correction.
    """

    records: dict[Unit, Record]
    results: dict[Unit, Result]
    measures: dict[str, dict[str, Interval]]
    flags: dict[str, list[str]]
    findings: list[Finding]
    beside: dict[str, dict[str, Difference]]

    def missing(self) -> list[Unit]:
        """The units that are not complete."""
        return [unit for unit in self.records if unit not in self.results]

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it, with null for what is not known or has no end."""
        units = [
            dataclasses.asdict(unit)
            | {"complete": unit in self.results}
            | dataclasses.asdict(record)
            | {"measures": measures_of(self.results[unit]) if unit in self.results else {}}
            for unit, record in self.records.items()
        ]
        findings = [
            dataclasses.asdict(found) | {"is_final": found.is_final} for found in self.findings
        ]
        return finite(
            {
                "complete": not self.missing(),
                "hypotheses": findings,
                "arms": self.measures,
                "beside": {
                    arm: {endpoint: dataclasses.asdict(found) for endpoint, found in of_arm.items()}
                    for arm, of_arm in self.beside.items()
                },
                "flags": self.flags,
                "units": units,
            }
        )


def analyze(design: Design) -> Analysis:
    """Reads what there is of a study, and applies the registered rules."""
    records = {unit: read_record(design.directory_of(unit)) for unit in design.units()}
    results = {
        unit: _read(design, unit) for unit, record in records.items() if is_complete(unit, record)
    }
    arms = {
        arm: [unit for unit in results if unit.arm == arm] for arm in (BASE, *design.study.arms)
    }
    measures = {
        arm: summarize([measures_of(results[unit]) for unit in units])
        for arm, units in arms.items()
        if units
    }
    return Analysis(
        records=records,
        results=results,
        measures=measures,
        flags=flags_of(design.study.flags, results),
        findings=findings_of(design, results),
        beside=beside_of(design, results),
    )


def decide(hypothesis: Hypothesis, low: float, high: float, p_adjusted: float) -> Decision:
    """The registered rule, the first that holds:

    no material effect   -s < low and high < s, for the smallest effect of interest s
    supports             p, adjusted, <= alpha, and the difference is above 0
    contradicts          p, adjusted, <= alpha, and it is below 0
    not settled          else

    Args:
      hypothesis: With s and alpha.
      low: End of the interval that covers 1 - alpha, not adjusted.
      high: The other end. The difference is in the middle.
      p_adjusted: After Holm's correction.
    """
    if -hypothesis.smallest_effect < low and high < hypothesis.smallest_effect:
        return "no material effect"
    if p_adjusted <= hypothesis.alpha:
        return "supports" if low + high > 0 else "contradicts"
    return "not settled"


def measures_of(result: Result) -> dict[str, float]:
    """What is reported of a unit beside the endpoints: name -> value.

    Of the evaluation Pass@K, `length`, `entropy`, `truncated` and `skill/...`; of the training
    `final_entropy`, over its last 10 steps, and `tokens`, those sampled in all steps, without those
    of explorations and of greedy completions.
    """
    evaluation = result.evaluation
    measures = {f"pass@{k}": value[0] for k, value in evaluation.pass_at_k.items()}
    measures |= {"length": evaluation.mean_length[0], "entropy": evaluation.mean_entropy[0]}
    measures |= {"truncated": evaluation.truncated}
    measures |= {f"skill/{name}": value for name, value in evaluation.skill.items()}
    if result.metrics:
        last = metric_values(result.metrics[-_LAST_STEPS:], "entropy")
        measures["final_entropy"] = float(running_mean(last, len(last))[0])
        measures["tokens"] = sum(row["sampled_tokens"] for row in result.metrics)
    return measures


def summarize(measures: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Mean of each measure over seeds, with the interval of Student's t: mean ± t s / √seeds.

    With one seed the interval is unbounded: how much seeds differ is not known.
    """
    summary = {}
    for name in measures[0]:
        values = np.array([of_seed[name] for of_seed in measures if name in of_seed], np.float64)
        reach = math.inf
        if len(values) > 1:
            t = stdtrit(len(values) - 1, (1 + _CONFIDENCE) / 2)
            reach = float(t * values.std(ddof=1) / math.sqrt(len(values)))
        mean = float(values.mean())
        summary[name] = (mean, mean - reach, mean + reach, len(values))
    return summary


def _read(design: Design, unit: Unit) -> Result:
    directory = design.directory_of(unit)
    evaluation = read_result(directory / EVALUATE)
    if evaluation is None:
        raise ValueError(f"{directory / EVALUATE}: the evaluation of a complete run is gone")
    metrics = read_jsonl(directory / TRAIN / METRICS_FILE)
    rows = design.train.rollout.prompts * design.train.rollout.group_size
    for row in metrics:
        # With several rounds in a step the rows are not known beforehand, and it says its tokens
        # itself.
        row["sampled_tokens"] = row.get("tokens_sampled", row["length"] * rows)
    return Result(evaluation, read_problems(directory), metrics)


def findings_of(design: Design, results: Mapping[Unit, Result]) -> list[Finding]:
    """What the results say of each registered hypothesis.

    Raises:
      ValueError: If there are results, and no problem has enough judged samples for it.
    """
    registered = design.study.registered()
    found = [
        difference_of(design, results, h.arm, h.against, h.endpoint, h.alpha) for h in registered
    ]
    for hypothesis, difference in zip(registered, found, strict=True):
        if difference.seeds and not difference.problems:
            raise ValueError(
                f"{hypothesis.name}: no problem has enough judged samples for {hypothesis.endpoint}"
            )
    adjusted = holm([difference.p_value for difference in found]).tolist() if found else []
    return [
        Finding(
            **dataclasses.asdict(difference),
            hypothesis=hypothesis,
            decision=decide(hypothesis, difference.low, difference.high, p),
            p_adjusted=p,
        )
        for hypothesis, difference, p in zip(registered, found, adjusted, strict=True)
    ]


def beside_of(design: Design, results: Mapping[Unit, Result]) -> dict[str, dict[str, Difference]]:
    """`Analysis.beside`, of the arms that have seeds and problems in common with that arm."""
    registered = design.study.registered()
    if not registered:
        return {}
    against = registered[0].against
    arms = [arm for arm in dict.fromkeys(unit.arm for unit in results) if arm != against]
    endpoints = list(dict.fromkeys(hypothesis.endpoint for hypothesis in registered))
    found = {
        arm: {
            e: difference_of(design, results, arm, against, e, 1 - _CONFIDENCE) for e in endpoints
        }
        for arm in arms
    }
    return {
        arm: of_arm for arm, of_arm in found.items() if all(d.problems for d in of_arm.values())
    }


def difference_of(
    design: Design,
    results: Mapping[Unit, Result],
    arm: str,
    against: str,
    endpoint: str,
    alpha: float,
) -> Difference:
    """The difference of two arms in an endpoint, on the seeds and problems that both have.

    Args:
      design: The study.
      results: The complete units.
      arm: An arm.
      against: Another one.
      endpoint: As of a hypothesis.
      alpha: The interval covers 1 - alpha.
    """
    pair = (arm, against)
    registered = [set(design.seeds(arm)) for arm in pair if arm != BASE]
    seeds = sorted(set.intersection(*registered))

    def unit(arm: str, seed: int) -> Unit:
        return Unit(arm, design.seeds(BASE)[0] if arm == BASE else seed)

    there = [seed for seed in seeds if all(unit(arm, seed) in results for arm in pair)]
    tallies = [[results[unit(arm, seed)].problems for seed in there] for arm in pair]
    every = sorted(set().union(*(problems for of_arm in tallies for problems in of_arm)))
    values = np.array(
        [
            [
                [problems[i].endpoint(endpoint) if i in problems else math.nan for i in every]
                for problems in of_arm
            ]
            for of_arm in tallies
        ]
    ).reshape(2, len(there), len(every))
    known = np.isfinite(values).all(axis=(0, 1))
    values = values[:, :, known]
    counts = dict(
        seeds=len(there),
        seeds_registered=len(seeds),
        problems=int(known.sum()),
        problems_left_out=int((~known).sum()),
    )
    if not known.any():
        return Difference(
            *[math.nan] * 3, p_value=1.0, arm_mean=math.nan, against_mean=math.nan, **counts
        )
    test = crossed_bootstrap(*values, confidence=1 - alpha)
    if np.array_equal(*values):
        least = _reach_of_agreement(endpoint, alpha, counts["problems"])
        test = test._replace(low=min(test.low, -least), high=max(test.high, least))
    return Difference(
        *map(float, test),
        arm_mean=float(values[0].mean()),
        against_mean=float(values[1].mean()),
        **counts,
    )


def _reach_of_agreement(endpoint: str, alpha: float, problems: int) -> float:
    """Half an interval where the arms agree on every problem, which a resample cannot see beyond.

    Were they to differ on more than a share 1 - alpha^(1/n) of all problems, n of them would all
    agree with a probability below alpha only. The means of an endpoint between 0 and 1 differ by no
    more than that share; of those of others nothing is known.
    """
    bounded = endpoint not in ("length", "entropy")
    return 1 - alpha ** (1 / problems) if bounded else math.inf


def flags_of(config: FlagsConfig, results: Mapping[Unit, Result]) -> dict[str, list[str]]:
    """Arm -> what is doubtful in some of its runs."""
    base = next((measures_of(result) for unit, result in results.items() if unit.arm == BASE), {})
    skill = f"skill/{config.skill}"
    found: dict[str, list[str]] = {}
    if base and config.skill is not None and skill not in base:
        found[BASE] = [
            unknown(
                "flags.skill",
                config.skill,
                [n.removeprefix("skill/") for n in base if n.startswith("skill/")],
            )
        ]
    for arm in dict.fromkeys(unit.arm for unit in results):
        runs = {
            unit.seed: measures_of(result) for unit, result in results.items() if unit.arm == arm
        }
        if skill in base:
            lost = {s: base[skill] - m[skill] for s, m in runs.items() if skill in m}
            lost = {seed: drop for seed, drop in lost.items() if drop > config.skill_drop}
            if lost:
                found.setdefault(arm, []).append(
                    f"{config.skill} fell by up to {max(lost.values()):.3f} below the policy "
                    "before training "
                    f"(limit {config.skill_drop}) in {_seeds(lost)}: what it lost in skill is in "
                    "its Pass@K"
                )
        cut = {
            seed: m["truncated"] for seed, m in runs.items() if m["truncated"] > config.truncated
        }
        if cut:
            found.setdefault(arm, []).append(
                f"up to {max(cut.values()):.3f} of the responses were cut off (limit "
                f"{config.truncated}) in "
                f"{_seeds(cut)}: its lengths are censored"
            )
    return found


def _seeds(seeds: Mapping[int, float]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, sorted(seeds)))}"
