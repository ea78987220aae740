"""Reports of runs: tables for the terminal, figures, and the HTML page."""

from entropy_rl.report.analysis_figures import write_analysis_figures
from entropy_rl.report.analysis_tables import analysis_text, dynamics_text, write_sentences
from entropy_rl.report.comparison_tables import comparison_csv, comparison_latex, comparison_text
from entropy_rl.report.curves import write_curves
from entropy_rl.report.pass_at_k import curve_of, write_pass_at_k
from entropy_rl.report.summary import evaluation_table, run_summary

__all__ = [
    "analysis_text",
    "comparison_csv",
    "comparison_latex",
    "comparison_text",
    "curve_of",
    "dynamics_text",
    "evaluation_table",
    "run_summary",
    "write_analysis_figures",
    "write_curves",
    "write_pass_at_k",
    "write_sentences",
]
