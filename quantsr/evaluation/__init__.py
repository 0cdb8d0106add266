"""Measure models on a data set: the same numbers at the end of a run and in ``eval.py``."""

from quantsr.evaluation.measure import measure, measure_outputs
from quantsr.evaluation.outputs import FRAMES_PER_SECOND, as_saved, save_output, save_versions
from quantsr.evaluation.report import Report
from quantsr.evaluation.table import print_table

__all__ = [
    "FRAMES_PER_SECOND",
    "Report",
    "as_saved",
    "measure",
    "measure_outputs",
    "print_table",
    "save_output",
    "save_versions",
]
