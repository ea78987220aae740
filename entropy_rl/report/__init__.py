"""Reports of runs: tables for the terminal, figures, and the HTML page."""

from entropy_rl.report.analysis_figures import behaviors_figure, write_analysis_figures
from entropy_rl.report.analysis_tables import analysis_text, dynamics_text, write_sentences
from entropy_rl.report.comparison_tables import comparison_csv, comparison_latex, comparison_text
from entropy_rl.report.curves import curves_figure, write_curves
from entropy_rl.report.pass_at_k import curve_of, pass_at_k_figure, write_pass_at_k
from entropy_rl.report.summary import evaluation_table, run_summary

__all__ = [
    "analysis_text",
    "behaviors_figure",
    "comparison_csv",
    "comparison_latex",
    "comparison_text",
    "curve_of",
    "curves_figure",
    "dynamics_text",
    "evaluation_table",
    "pass_at_k_figure",
    "run_summary",
    "write_analysis_figures",
    "write_curves",
    "write_pass_at_k",
    "write_sentences",
]
