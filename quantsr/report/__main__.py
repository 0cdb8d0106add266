"""``python -m quantsr.report RUN_OR_SWEEP ... [--out FOLDER]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from quantsr.errors import UserError
from quantsr.report import print_report, read_jobs, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare runs; returns the exit code, 2 for what the user can put right."""
    parser = argparse.ArgumentParser(
        prog="python -m quantsr.report",
        description="Compare runs: prints the table and writes report.html (one file that opens from disk), table.csv, "
        "table.md and table.tex. Runs that failed, did not finish or cannot be read are named.",
        epilog="example: python -m quantsr.report runs/2026-01-31 --out comparison",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_OR_SWEEP", help="run folders, sweeps, folders of these"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: the folder given, or ./report for several")
    options = parser.parse_args(arguments)
    folder = options.out or (options.runs[0] if len(options.runs) == 1 else Path("report"))
    try:
        print_report(*write_report(read_jobs(options.runs), folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
