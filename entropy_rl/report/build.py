"""Build a report: read runs, compare and analyze them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from entropy_rl.analysis import (
    Analysis,
    Annotated,
    WordLists,
    analyze,
    annotate,
    compile_patterns,
    find_rare,
    word_patterns,
)
from entropy_rl.evaluation import Comparison, Curve, compare_runs, read_samples
from entropy_rl.evaluation.load_samples import words_of
from entropy_rl.evaluation.samples import has_samples
from entropy_rl.report.pass_at_k import curve_of
from entropy_rl.report.reported_run import ReportedRun
from entropy_rl.report.samples import Limits, SelectedSamples, select_responses, select_samples
from entropy_rl.runs.directory import CONFIG_FILE
from entropy_rl.runs.stored import read_recorded_config

_ANALYZED_TOKENS = 100_000  # of all runs
_MIN_COUNT = 20  # of the most entropic tokens
_SENTENCES = 1000  # on the map of rare sentences, of a run and of its base each


@dataclasses.dataclass(frozen=True)
class SampleSource:
    """A directory with samples.

    Attributes:
      run: Index of the run that they belong to.
      label: Name of the source on the page.
      directory: Directory of an evaluation or of the run.
    """

    run: int
    label: str
    directory: Path


@dataclasses.dataclass(frozen=True)
class LabeledCurve:
    """Pass@K of an evaluation.

    Attributes:
      run: Index of the run.
      label: Name of the evaluation.
      is_last: Whether it is the last one of the run.
      curve: K -> (Pass@K, low, high, problems).
    """

    run: int
    label: str
    is_last: bool
    curve: Curve


@dataclasses.dataclass(frozen=True)
class Report:
    """The contents of a report.

    Attributes:
      runs: The runs.
      curves: Pass@K of the first and the last evaluation of each run.
      compared: Names of what is compared: two runs, or the first and last evaluation of one.
      comparison: Their comparison; a text with the reason if they cannot be compared; None if there
        is nothing to compare.
      samples: Selected samples of each source.
      analyses: Run name -> analysis of its last samples; includes rare behaviors if there is an
        evaluation to serve as base.
    """

    runs: list[ReportedRun]
    curves: list[LabeledCurve]
    compared: list[str]
    comparison: Comparison | str | None
    samples: list[tuple[SampleSource, SelectedSamples]]
    analyses: dict[str, Analysis]


def build_report(
    runs: Sequence[ReportedRun],
    *,
    rows: int,
    tokens: int,
    words: WordLists | None = None,
    reflective: Sequence[str] | None = None,
) -> Report:
    """Read, compare and analyze runs.

    Args:
      runs: One or more runs.
      rows: Number of responses to show, of all runs.
      tokens: Approximate number of their tokens.
      words: Classes of pivotal tokens, as in `AnalyzeConfig`; None for those of the task of each
        run.
      reflective: Expressions of reflective sentences, likewise.

    Raises:
      ValueError: A file cannot be read.
    """
    curves = [
        LabeledCurve(number, label, step == max(run.evaluations), curve_of(result))
        for number, run in enumerate(runs)
        for label, (step, _, result) in run.first_and_last.items()
    ]
    compared, comparison = _compare(runs)
    sources = _sources(runs)
    share = max(1, len(sources))
    limits = Limits(max(1, rows // share), tokens // share, _ANALYZED_TOKENS // len(runs))
    samples = []
    for source in sources:
        config = runs[source.run].trained_by
        selected = select_samples(source.directory, limits, config, _temperature(source))
        samples.append((source, selected))
    # The last source of each run, which is its last evaluation if there is one.
    last = {
        source.run: (source.directory, selected.analyzed)
        for source, selected in samples
        if selected.analyzed
    }
    analyses = {}
    for number, (directory, responses) in last.items():
        of_task = words_of(runs[number].directory)
        patterns = word_patterns(words or of_task[0])
        expressions = compile_patterns(reflective or of_task[1])
        own = [annotate(response, patterns, expressions) for response in responses]
        analysis, base = analyze(own, min_count=_MIN_COUNT), _base(runs, number)
        if base is not None:
            label, other = base
            of_base = select_responses(other, _ANALYZED_TOKENS // len(runs))
            of_base = [annotate(response, patterns, expressions) for response in of_base]
            common = _of_common_problems((directory, own), (other, of_base))
            rare = find_rare(*common, base_name=label, max_sentences=_SENTENCES)
            analysis = dataclasses.replace(analysis, rare=rare)
        analyses[runs[number].name] = analysis
    return Report(list(runs), curves, compared, comparison, samples, analyses)


def _compare(runs: Sequence[ReportedRun]) -> tuple[list[str], Comparison | str | None]:
    """Compare two runs, or the first and last evaluation of one; the first is the baseline."""
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
        comparison = compare_runs(*(directory for _, (_, directory, _) in pairs))
        return [label for label, _ in pairs], comparison
    except ValueError as error:
        return [], str(error)


def _base(runs: Sequence[ReportedRun], number: int) -> tuple[str, Path] | None:
    """The base of rare sentences: the first evaluation of the run, or the last of the baseline.

    Returns:
      Its label and its directory; None if there is none with samples.
    """
    own, baseline = (list(run.first_and_last.items()) for run in (runs[number], runs[0]))
    if len(own) > 1:
        label, (_, found, _) = own[0]
    elif number and own and baseline:
        label, (_, found, _) = baseline[-1]
    else:
        return None
    return (label, found) if has_samples(found) else None


def _of_common_problems(*sources: tuple[Path, list[Annotated]]) -> list[list[Annotated]]:
    """Of each directory, the responses to prompts that all of them have."""
    prompts = [
        {row["problem"]: row["prompt"] for row in read_samples(directory)}
        for directory, _ in sources
    ]
    common = set.intersection(*(set(of_source.values()) for of_source in prompts))
    return [
        [a for a in responses if of_source[a.response.problem] in common]
        for of_source, (_, responses) in zip(prompts, sources, strict=True)
    ]


def _sources(runs: Sequence[ReportedRun]) -> list[SampleSource]:
    sources = []
    for number, run in enumerate(runs):
        if run.is_training:
            sources.append(SampleSource(number, f"{run.name}: training", run.directory))
        if run.evaluations:
            step = max(run.evaluations)
            label = f"evaluation at step {step}" if run.is_training else "evaluation"
            directory = run.evaluations[step][0]
            sources.append(SampleSource(number, f"{run.name}: {label}", directory))
    # Users may have deleted the samples, which are large.
    return [source for source in sources if has_samples(source.directory)]


def _temperature(source: SampleSource) -> float | None:
    """The sampling temperature; None if no config is stored with the samples."""
    plain = read_recorded_config(source.directory / CONFIG_FILE)
    # The evaluations of a training run store their section only.
    section = plain.get("rollout") or plain.get("evaluation") or plain
    return section.get("temperature")
