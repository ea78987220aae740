"""The figures of an entropy analysis, as PNG and SVG."""

from __future__ import annotations


def write_analysis_figures(directory, analysis, course):
    return []
