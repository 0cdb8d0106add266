"""The calibration benchmark runs and fills its table; how fast, no test says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "calibration.py"


@pytest.mark.slow
def test_every_case_has_a_row(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--small", "--rounds", "1", "--threads", "1", "--json", str(figures)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    rows = json.loads(figures.read_text())
    names = [row.pop("name") for row in rows]
    assert names[0] == "full precision, frozen weights"
    for stage in ("smoothing stage", "bounds stage"):
        expected = {
            f"plain eager, {stage}, layers",
            f"quantsr, {stage}, layers",
            f"quantsr, {stage}, layers and attention",
        }
        assert expected <= set(names)
    assert all(figure > 0 for row in rows for figure in row.values())
    printed = [line.split("|")[1].strip() for line in run.stdout.splitlines() if line.startswith("|")]
    assert printed[2:] == names
