"""`entropy-rl report`: a self-contained HTML page of runs."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import ClassVar

from entropy_rl.analysis.behaviors import check_expressions
from entropy_rl.commands.analyze import AnalyzeConfig
from entropy_rl.config.checks import check_numbers, require, require_at_least
from entropy_rl.config.files import check_creatable, check_writable, expand_home
from entropy_rl.escape import echo

_MAX_RUNS = 8  # distinguishable colors


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Show training runs and evaluations on one HTML page: `entropy-rl report`.

    Args:
      runs: Directories of training runs or evaluations. If there are two, the first is the baseline
        of a comparison.
      output: HTML file to write.
      figures: Directory for the figures as SVG and PDF, for a paper; null for none (needs
        matplotlib).
      figure_style: Size and fonts of the figures: `column` (3.25 in wide, 8 pt), `page` (6.75 in,
        9 pt), `slides`, or a style of matplotlib, such as an .mplstyle file.
      responses: Number of responses on the page, of all runs, spread over problems or steps.
      tokens: Approximate number of their tokens; determines the size of the page.
      words: Class -> words, the pivotal tokens, as in `analyze`.
      reflective: Regular expressions of reflective sentences, as in `analyze`.
    """

    POSITIONAL: ClassVar = ("runs",)
    ALSO_READS: ClassVar = (AnalyzeConfig,)

    runs: list[str]
    output: str = "report.html"
    figures: str | None = None
    figure_style: str = "column"
    responses: int = 400
    tokens: int = 60_000
    words: dict[str, list[str]] | None = None
    reflective: list[str] | None = None

    def __post_init__(self):
        check_numbers(self, "")
        expand_home(self, "runs", "output", "figures")
        require(self.output.endswith(".html"), "output", self.output, "a file NAME.html")
        require(
            1 <= len(self.runs) <= _MAX_RUNS, "runs", self.runs, f"1 to {_MAX_RUNS} directories"
        )
        require_at_least(1, "", self, "responses", "tokens")
        require(
            self.figures is not None or self.figure_style == "column",
            "figure_style",
            self.figure_style,
            "column without figures",
        )
        check_expressions(self.words, self.reflective)


def main(config: ReportConfig) -> None:
    """Run the command `report`."""
    # Imported here so that `report --help` does not load jax.
    from entropy_rl.report.build import build_report
    from entropy_rl.report.page import page
    from entropy_rl.report.paper_figures import write_paper_figures
    from entropy_rl.report.reported_run import read_runs
    from entropy_rl.runs.jsonl import write_atomically

    output = Path(config.output)
    check_writable(output)
    if config.figures is not None:
        check_creatable(Path(config.figures), "figures")
    report = build_report(
        read_runs(config.runs),
        rows=config.responses,
        tokens=config.tokens,
        words=config.words,
        reflective=config.reflective,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page(report, _command(config)))
    echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
    if config.figures is not None:
        written = write_paper_figures(Path(config.figures), report, config.figure_style)
        echo(f"wrote {len(written)} figures to {config.figures}")


def _command(config: ReportConfig) -> str:
    """The command that makes the page: the runs and all options that differ from their defaults."""
    defaults, options = ReportConfig(config.runs), []
    for field in dataclasses.fields(config)[1:]:
        value = getattr(config, field.name)
        if value != getattr(defaults, field.name):
            options += [f"--{field.name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(["entropy-rl", "report", *config.runs, *options])
