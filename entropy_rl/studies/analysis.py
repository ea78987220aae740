"""Analysis of a study: results of the complete units, and tests of the registered hypotheses."""

from __future__ import annotations

import dataclasses
from typing import Any

from entropy_rl.config.study import BASE
from entropy_rl.runs.jsonl import finite
from entropy_rl.studies.grid import Design, Unit
from entropy_rl.studies.hypotheses import (
    Difference,
    HypothesisTest,
    baseline_differences,
    hypothesis_tests,
)
from entropy_rl.studies.matched import matched_differences
from entropy_rl.studies.measures import (
    SeedMean,
    UnitResult,
    find_flags,
    mean_over_seeds,
    measures_of,
    read_unit,
)
from entropy_rl.studies.records import Record, is_complete, read_records


@dataclasses.dataclass(frozen=True)
class StudyAnalysis:
    """Results of a study, complete or not.

    Attributes:
      records: Unit -> its progress.
      results: Unit -> its result, for the complete units.
      measures: Arm -> measure -> mean over the seeds of the arm, with an interval.
      flags: Arm -> reasons to doubt its result; arms without any are left out.
      tests: The tests of the hypotheses, in the order of the config.
      matched: Hypothesis -> control -> difference with matched samples; exploratory.
      baseline_differences: Arm -> endpoint -> its difference from the `against` arm of the first
        hypothesis; exploratory, without correction.
    """

    records: dict[Unit, Record]
    results: dict[Unit, UnitResult]
    measures: dict[str, dict[str, SeedMean]]
    flags: dict[str, list[str]]
    tests: list[HypothesisTest]
    matched: dict[str, dict[str, Difference]]
    baseline_differences: dict[str, dict[str, Difference]]

    def missing(self) -> list[Unit]:
        """The units that are not complete."""
        return [unit for unit in self.records if unit not in self.results]

    def to_plain(self) -> dict[str, Any]:
        """Values for JSON; null stands for unknown values and unbounded interval ends."""
        units = [
            dataclasses.asdict(unit)
            | {"complete": unit in self.results}
            | dataclasses.asdict(record)
            | {"measures": measures_of(self.results[unit]) if unit in self.results else {}}
            for unit, record in self.records.items()
        ]
        return finite(
            {
                "complete": not self.missing(),
                "hypotheses": [
                    dataclasses.asdict(test) | {"is_final": test.is_final} for test in self.tests
                ],
                "arms": self.measures,
                "matched": _plain(self.matched),
                "baseline_differences": _plain(self.baseline_differences),
                "flags": self.flags,
                "units": units,
            }
        )


def _plain(differences: dict[str, dict[str, Difference]]) -> dict[str, Any]:
    return {
        name: {other: dataclasses.asdict(d) for other, d in of.items()}
        for name, of in differences.items()
    }


def analyze_study(design: Design) -> StudyAnalysis:
    """Read the complete units of a study and apply the registered rules."""
    records = read_records(design)
    results = {
        unit: read_unit(design, unit)
        for unit, record in records.items()
        if is_complete(unit, record)
    }
    arms = {
        arm: [unit for unit in results if unit.arm == arm] for arm in (BASE, *design.study.arms)
    }
    measures = {
        arm: mean_over_seeds([measures_of(results[unit]) for unit in units])
        for arm, units in arms.items()
        if units
    }
    return StudyAnalysis(
        records=records,
        results=results,
        measures=measures,
        flags=find_flags(design.study.flags, results),
        tests=hypothesis_tests(design, results),
        matched=matched_differences(design, results),
        baseline_differences=baseline_differences(design, results),
    )
