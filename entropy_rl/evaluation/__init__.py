"""Pass@K and its companions: every problem sampled n times, every sample on disk, and the
statistics.
"""

from entropy_rl.evaluation.compare_runs import (
    Comparison,
    Curve,
    Line,
    compare_runs,
    find_evaluation,
)
from entropy_rl.evaluation.evaluate import OnProgress, evaluate, evaluate_into, evaluation_prompts
from entropy_rl.evaluation.result import Evaluation, summarize
from entropy_rl.evaluation.samples import read_result, read_samples

__all__ = [
    "Comparison",
    "Curve",
    "Evaluation",
    "Line",
    "OnProgress",
    "compare_runs",
    "evaluate",
    "evaluate_into",
    "evaluation_prompts",
    "find_evaluation",
    "read_result",
    "read_samples",
    "summarize",
]
