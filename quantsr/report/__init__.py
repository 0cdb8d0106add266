"""One comparison of many runs: a table like the papers', a page with pictures and curves.

``write_report`` writes all of it; ``comparison_images`` writes the crops side by side, for loggers.
"""

from quantsr.report.build import build_table
from quantsr.report.jobs import Job, read_jobs
from quantsr.report.sheets import comparison_images
from quantsr.report.table import Table
from quantsr.report.write import print_report, write_report

__all__ = ["Job", "Table", "build_table", "comparison_images", "print_report", "read_jobs", "write_report"]
