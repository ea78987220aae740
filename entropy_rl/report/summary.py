"""What is said at the end of a run."""

from __future__ import annotations

from pathlib import Path

from entropy_rl.evaluation import read_result
from entropy_rl.report.curves import write_curves
from entropy_rl.report.evaluations import evaluation_table
from entropy_rl.runs.directory import EVALUATIONS_DIRECTORY, SAMPLES_FILE


def run_summary(directory: Path, steps: int) -> str:
    """The evaluations before and after, where the curves are, and what to do next.

    Args:
      directory: The run.
      steps: Its last step.

    Returns:
      Text for the terminal; the curves are drawn on the way.
    """
    parts = []
    evaluations = directory / EVALUATIONS_DIRECTORY
    columns = {f"step {step}": read_result(evaluations / str(step)) for step in (0, steps)}
    columns = {heading: found for heading, found in columns.items() if found is not None}
    if columns:
        parts.append(evaluation_table(columns))
        parts.append(
            "One run with one seed shows that the machinery works, not which method is better."
        )
    try:
        parts.append(f"curves:  {write_curves(directory)}")
    except ValueError as error:
        parts.append(f"curves:  not drawn, {error}")
    except ImportError:
        parts.append(
            "curves:  not drawn, matplotlib is not installed (pip install 'entropy_rl[report]')"
        )
    parts.append(f"samples: {directory / SAMPLES_FILE}")
    parts.append(f"report:  entropy-rl report {directory} --output report.html")
    parts.append(f"export:  entropy-rl export --model {directory} --output DIRECTORY")
    return "\n\n".join(parts[:-3]) + "\n" + "\n".join(parts[-3:])
