"""The calibration benchmark runs and fills its table; how fast, no test says."""

import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "calibration"


STAGES = {
    "passionsr": {
        f"{who}, {stage} stage, {what}"
        for stage in ("smoothing", "bounds")
        for who, what in (("plain eager", "layers"), ("quantsr", "layers"), ("quantsr", "layers and attention"))
    },
    "quantvsr": {
        f"{who}, {stage} stage, layers"
        for stage in ("refinement", "bias alignment")
        for who in ("plain eager", "quantsr")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGES)
def test_every_case_has_a_row(python, tmp_path, method):
    figures = tmp_path / "figures.json"
    options = ["--method", method, "--small", "--rounds", "1", "--threads", "1", "--json", str(figures)]
    run = subprocess.run([python, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    rows = json.loads(figures.read_text())
    names = [row.pop("name") for row in rows]
    assert names[0] == "full precision, frozen weights"
    assert STAGES[method] <= set(names)
    assert all(figure > 0 for row in rows for figure in row.values())
    printed = [line.split("|")[1].strip() for line in run.stdout.splitlines() if line.startswith("|")]
    assert printed[2:] == names
