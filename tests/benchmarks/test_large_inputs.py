"""The benchmark of large inputs prints a row for every size; how much and how fast, no test says."""

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "large_inputs.py"


def test_every_size_has_a_row(python, teacher_file):
    options = ["--teacher", str(teacher_file), "--sizes", "52x36", "64", "--tile", "32", "--whole", "52"]
    run = subprocess.run([python, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = {cells[0]: cells[1:] for cells in map(str.split, run.stdout.splitlines()) if cells and "x" in cells[0]}
    assert list(rows) == ["52x36", "64x64"]
    assert [len(row) for row in rows.values()] == [5, 3]
    assert all(float(cell) >= 0 for row in rows.values() for cell in row)
