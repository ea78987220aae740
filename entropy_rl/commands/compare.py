"""`entropy-rl compare`: paired tests of two evaluations, with controls for length and accuracy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

from entropy_rl.config.checks import require
from entropy_rl.config.files import check_creatable, expand_home
from entropy_rl.escape import echo


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Compare two evaluations of the same problems: `entropy-rl compare`.

    Args:
      run_a: The baseline: directory of an evaluation, or of a training run for its last one.
      run_b: The evaluation to compare with it.
      output: Directory for comparison.json, comparison.csv, comparison.tex (needs the LaTeX package
        booktabs) and the curves.
    """

    POSITIONAL: ClassVar = ("run_a", "run_b")

    run_a: str
    run_b: str
    output: str = "comparison"

    def __post_init__(self):
        expand_home(self, "run_a", "run_b", "output")


def main(config: CompareConfig) -> None:
    """Run the command `compare`."""
    # Imported here so that `compare --help` does not load jax.
    from entropy_rl.evaluation import compare_runs
    from entropy_rl.report import (
        comparison_csv,
        comparison_latex,
        comparison_text,
        write_pass_at_k,
    )
    from entropy_rl.report.reported_run import short_names
    from entropy_rl.runs.jsonl import write_atomically

    runs, directory = check_config(config), Path(config.output)
    comparison = compare_runs(*runs)
    directory.mkdir(parents=True, exist_ok=True)
    plain = {"run_a": str(runs[0]), "run_b": str(runs[1])} | comparison.to_plain()
    write_atomically(directory / "comparison.json", json.dumps(plain, indent=1) + "\n")
    write_atomically(directory / "comparison.csv", comparison_csv(comparison, list(map(str, runs))))
    short = short_names(runs)
    write_atomically(directory / "comparison.tex", comparison_latex(comparison, short))
    names = [f"{name}: {run}" for name, run in zip("AB", short, strict=True)]
    write_pass_at_k(directory, dict(zip(names, comparison.curves, strict=True)))
    echo(f"A: {runs[0]}\nB: {runs[1]}\n")
    echo(comparison_text(comparison))
    echo(f"\nnumbers and curves: {directory}")


def check_config(config: CompareConfig) -> list[Path]:
    """Check the output, and return the directories of the two evaluations.

    Raises:
      ValueError: If the output is that of a run, or there are no two evaluations.
    """
    from entropy_rl.evaluation import find_evaluation
    from entropy_rl.evaluation.samples import refuse_run

    runs = [find_evaluation(Path(path)) for path in (config.run_a, config.run_b)]
    refuse_run(Path(config.output))
    check_creatable(Path(config.output))
    is_other = runs[0].resolve() != runs[1].resolve()
    require(is_other, "run_b", str(runs[1]), f"another evaluation than that of {config.run_a}")
    return runs
