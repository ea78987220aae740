"""Whether one run beats another: paired tests over problems, and the controls for length and
accuracy.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import ClassVar

from entropy_rl.cli.main import run_verb


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Two evaluations of the same problems: `entropy-rl compare`.

    Args:
      run_a: The baseline: what `evaluate` wrote, or a training run, for its last evaluation.
      run_b: What is held against it.
      output: Directory for comparison.json, comparison.csv and the curves.
    """

    POSITIONAL: ClassVar = ("run_a", "run_b")

    run_a: str
    run_b: str
    output: str = "comparison"


def main(config: CompareConfig) -> None:
    """The verb `compare` of the command line."""
    # Here: `compare --help` need not wait for jax.
    from entropy_rl.evaluation import compare_runs, find_evaluation
    from entropy_rl.evaluation.samples import RESULT_FILE
    from entropy_rl.report import comparison_csv, comparison_text, write_pass_at_k
    from entropy_rl.runs.directory import CONFIG_FILE
    from entropy_rl.runs.jsonl import write_atomically

    runs = [find_evaluation(Path(path)) for path in (config.run_a, config.run_b)]
    directory = Path(config.output)
    if (directory / RESULT_FILE).exists() or (directory / CONFIG_FILE).exists():
        raise ValueError(f"output: {directory} holds a run; choose another directory")
    comparison = compare_runs(*runs)
    directory.mkdir(parents=True, exist_ok=True)
    plain = {"run_a": str(runs[0]), "run_b": str(runs[1])} | comparison.to_plain()
    write_atomically(directory / "comparison.json", json.dumps(plain, indent=1) + "\n")
    write_atomically(directory / "comparison.csv", comparison_csv(comparison))
    names = [f"{arm}: {run}" for arm, run in zip("AB", runs, strict=True)]
    write_pass_at_k(directory, dict(zip(names, comparison.curves, strict=True)))
    print(f"A: {runs[0]}\nB: {runs[1]}\n")
    print(comparison_text(comparison))
    print(f"\nnumbers and curves are in {directory}")


if __name__ == "__main__":
    sys.exit(run_verb("compare", sys.argv[1:]))
