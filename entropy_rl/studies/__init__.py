"""A study: its grid of runs, what runs them, and what they say about the registered hypotheses."""

from entropy_rl.studies.grid import Design, design
from entropy_rl.studies.report import write_report
from entropy_rl.studies.runner import plan_text, read_records, run_units, to_do

__all__ = ["Design", "design", "plan_text", "read_records", "run_units", "to_do", "write_report"]
