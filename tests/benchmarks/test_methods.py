"""The benchmark of all methods' steps has a row for every stage; how fast, no test says."""

import json
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "methods.py"

STAGES = {
    "minmax": ["ranges"],
    "qdiffusion": ["ranges", "weights unet.time_embedding", "weights unet.conv_out"],
    "quantvsr": ["complexity", "refinement", "alignment"],
    "svdquant": ["smoothing", "ranges"],
}


@pytest.mark.slow
def test_every_stage_has_a_row(python, tmp_path):
    figures = tmp_path / "figures.json"
    options = ["--methods", *STAGES, "--crop", "32", "--steps", "1", "--threads", "1", "--json", str(figures)]
    run = subprocess.run([python, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(figures.read_text())
    assert found["full_precision"] > 0
    for method, stages in STAGES.items():
        assert [row["stage"] for row in found["rows"] if row["method"] == method][: len(stages)] == stages
    assert all(row["seconds"] > 0 and row["finish"] >= 0 for row in found["rows"])
    assert run.stdout.count("\n| ") == 1 + len(found["rows"])  # And the head.
