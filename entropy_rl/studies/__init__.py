"""Studies: a grid of training runs, and tests of hypotheses registered before they are run."""

from entropy_rl.studies.grid import Design, design
from entropy_rl.studies.inputs import check_inputs
from entropy_rl.studies.plan import plan_text
from entropy_rl.studies.records import incomplete, read_records
from entropy_rl.studies.report import write_report
from entropy_rl.studies.runner import run_units

__all__ = [
    "Design",
    "check_inputs",
    "design",
    "incomplete",
    "plan_text",
    "read_records",
    "run_units",
    "write_report",
]
