"""From jobs to the files of a report."""

from collections.abc import Sequence
from pathlib import Path

from quantsr.errors import UserError
from quantsr.report.build import build_table
from quantsr.report.formats import as_csv, as_latex, as_markdown, print_tables
from quantsr.report.jobs import Job
from quantsr.report.page import render_page
from quantsr.report.table import Table


def write_report(jobs: Sequence[Job], folder: Path) -> tuple[Table, list[Path]]:
    """Write ``table.csv``, ``table.md``, ``table.tex`` and ``report.html``.

    Args:
        jobs: what :func:`quantsr.report.read_jobs` gives; those without figures are named.
        folder: is made.

    Returns:
        The table, and the files in this order.

    Raises:
        UserError: no job has figures.
    """
    table = build_table(jobs)
    if not table.sections:
        raise UserError(f"no run has figures to compare: {'; '.join(table.notes)}")
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"table.csv": as_csv, "table.md": as_markdown, "table.tex": as_latex, "report.html": render_page}
    for name, make in makers.items():
        unfinished = folder / f"{name}.unfinished"  # A killed process leaves no half file.
        unfinished.write_text(make(table), encoding="utf-8")
        unfinished.replace(folder / name)
    return table, [folder / name for name in makers]


def print_report(table: Table, files: Sequence[Path]) -> None:
    """The table on the terminal, and where it was written."""
    print_tables(table)
    *tables, page = files
    print("\n".join(f"{'' if number else 'table':8} {path}" for number, path in enumerate(tables)))
    print(f"page     {page}")
