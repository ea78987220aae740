"""What a run leaves for people: evaluations, a table, a plot of the curves."""

from entropy_rl.report.curves import write_curves
from entropy_rl.report.evaluations import evaluation_table, read_evaluation, write_evaluation
from entropy_rl.report.summary import run_summary

__all__ = ["evaluation_table", "read_evaluation", "run_summary", "write_curves", "write_evaluation"]
