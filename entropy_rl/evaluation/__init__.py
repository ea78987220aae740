"""Evaluations: n samples of every problem, stored on disk, and their statistics."""

from entropy_rl.evaluation.compare import (
    Comparison,
    ComparisonRow,
    Curve,
    compare_runs,
    find_evaluation,
)
from entropy_rl.evaluation.evaluate import (
    OnProgress,
    evaluate_into,
    evaluation_problems,
    evaluation_prompts,
)
from entropy_rl.evaluation.result import Evaluation, summarize
from entropy_rl.evaluation.samples import read_result, read_samples

__all__ = [
    "Comparison",
    "ComparisonRow",
    "Curve",
    "Evaluation",
    "OnProgress",
    "compare_runs",
    "evaluate_into",
    "evaluation_problems",
    "evaluation_prompts",
    "find_evaluation",
    "read_result",
    "read_samples",
    "summarize",
]
