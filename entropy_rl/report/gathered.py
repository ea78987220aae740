"""What a report of some runs is made of, read and computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from entropy_rl.analysis import (
    Analysis,
    analyze,
    annotate,
    compile_patterns,
    find_rare,
    word_patterns,
)
from entropy_rl.evaluation import Comparison, Curve, compare_runs
from entropy_rl.report.pass_at_k import curve_of
from entropy_rl.report.reported_run import ReportedRun
from entropy_rl.report.samples import Limits, Samples, read_responses, read_some
from entropy_rl.runs.directory import CONFIG_FILE
from entropy_rl.runs.stored import read_recorded_config

_ANALYSED_TOKENS = 100_000  # in all
_MIN_COUNT = 20  # of a token that is called most entropic
_SENTENCES = 1000  # on the map of rare ones, of a run and of what it is held against


@dataclasses.dataclass(frozen=True)
class Source:
    """Where samples lie.

    Attributes:
      run: The number of the run that they are of.
      label: What they are.
      directory: Of an evaluation or of the run.
    """

    run: int
    label: str
    directory: Path


@dataclasses.dataclass(frozen=True)
class LabeledCurve:
    """Pass@K of an evaluation: the number of its run, what it is called, whether it is the run's
    last one.
    """

    run: int
    label: str
    is_last: bool
    curve: Curve


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page shows, and the figures for a paper too.

    Attributes:
      runs: The runs.
      curves: Of the first and the last evaluation of each.
      arms: What is compared: two runs, or the first and the last evaluation of one.
      comparison: Of these; a text says why there is none, and None that there is nothing to
        compare.
      samples: Some of each source.
      analyses: Of the runs with samples, by their names; with rare behaviors where there is an
        evaluation to hold the last one against.
    """

    runs: list[ReportedRun]
    curves: list[LabeledCurve]
    arms: list[str]
    comparison: Comparison | str | None
    samples: list[tuple[Source, Samples]]
    analyses: dict[str, Analysis]


def gather_report(
    runs: Sequence[ReportedRun],
    *,
    rows: int,
    tokens: int,
    words: Mapping[str, Sequence[str]],
    reflective: Sequence[str],
) -> Report:
    """Reads and computes what a report shows.

    Args:
      runs: One or more.
      rows: Responses to read, of all runs together.
      tokens: Their tokens, about.
      words: Classes of pivotal tokens, as of `analyze`.
      reflective: Expressions of reflective sentences, as of `analyze`.

    Raises:
      ValueError: A file cannot be read.
    """
    curves = [
        LabeledCurve(number, label, step == max(run.evaluations), curve_of(result))
        for number, run in enumerate(runs)
        for label, (step, _, result) in run.first_and_last.items()
    ]
    arms, comparison = _compare(runs)
    sources = _sources(runs)
    share = max(1, len(sources))
    limits = Limits(max(1, rows // share), tokens // share, _ANALYSED_TOKENS // len(runs))
    samples = [
        (
            source,
            read_some(source.directory, limits, runs[source.run].trained_by, _temperature(source)),
        )
        for source in sources
    ]
    patterns, expressions = word_patterns(words), compile_patterns(reflective)
    # Of each run the source that came last: its last evaluation, if there is one.
    last = {source.run: found.analyzed for source, found in samples if found.analyzed}
    analyses = {}
    for number, responses in last.items():
        own = [annotate(response, patterns, expressions) for response in responses]
        found, base = analyze(own, min_count=_MIN_COUNT), _base(runs, number)
        if base is not None:
            others = read_responses(base, _ANALYSED_TOKENS // len(runs))
            others = [annotate(response, patterns, expressions) for response in others]
            found = dataclasses.replace(
                found, rare=find_rare(own, others, max_sentences=_SENTENCES)
            )
        analyses[runs[number].name] = found
    return Report(list(runs), curves, arms, comparison, samples, analyses)


def _compare(runs: Sequence[ReportedRun]) -> tuple[list[str], Comparison | str | None]:
    """The first run is the baseline; of a single one its first evaluation is."""
    if len(runs) == 2:
        without = [run.name for run in runs if not run.evaluations]
        if without:
            return [], f"{', '.join(without)}: no complete evaluation"
        pairs = [list(run.first_and_last.items())[-1] for run in runs]
    else:
        pairs = list(runs[0].first_and_last.items()) if len(runs) == 1 else []
    if len(pairs) < 2:
        return [], None
    try:
        return [label for label, _ in pairs], compare_runs(
            *(directory for _, (_, directory, _) in pairs)
        )
    except ValueError as error:
        return [], str(error)


def _base(runs: Sequence[ReportedRun], number: int) -> Path | None:
    """The evaluation whose sentences are usual: the first one of the run, or of a baseline its
    last.
    """
    own, baseline = runs[number].evaluations, runs[0].evaluations
    if len(own) > 1:
        found = own[min(own)][0]
    elif number and own and baseline:
        found = baseline[max(baseline)][0]
    else:
        return None
    return found if _has_samples(found) else None


def _has_samples(directory: Path) -> bool:
    return any(path.stat().st_size for path in directory.glob("samples*.jsonl"))


def _sources(runs: Sequence[ReportedRun]) -> list[Source]:
    found = []
    for number, run in enumerate(runs):
        if run.is_training:
            found.append(Source(number, f"{run.name}: training", run.directory))
        if run.evaluations:
            step = max(run.evaluations)
            label = f"evaluation at step {step}" if run.is_training else "evaluation"
            found.append(Source(number, f"{run.name}: {label}", run.evaluations[step][0]))
    return [
        source for source in found if _has_samples(source.directory)
    ]  # they may have been moved away


def _temperature(source: Source) -> float | None:
    """That the samples were drawn with; None where nothing beside them says it."""
    plain = read_recorded_config(source.directory / CONFIG_FILE)
    # A training run keeps the section alone beside its evaluations.
    section = plain.get("rollout") or plain.get("evaluation") or plain
    return section.get("temperature")
