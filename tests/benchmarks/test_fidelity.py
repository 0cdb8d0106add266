"""The table of exported students has a row for every run, and codes that differ are few."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fidelity.py"


@pytest.mark.slow
def test_a_run_has_a_row(python, teacher_file, image_folder, tmp_path):
    options = ["method=minmax", "bits=w8a8", f"teacher.weights={teacher_file}", "data=images"]
    options += [f"data.root={image_folder}", "data.crop=32", "method.observation_steps=1", "logger=csv"]
    for command in (
        [str(ROOT / "train.py"), *options, f"hydra.run.dir={tmp_path / 'run'}"],
        [str(SCRIPT), str(tmp_path / "run"), "--samples", "1", "--threads", "1"],
    ):
        done = subprocess.run([python, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"\| .* \| (\d+\.\d\d \| ){4}0\.\d{4}% \| 0\.\d{4}% \|", row)
    differ, without_ties = (float(cell.strip(" %")) for cell in row.split("|")[-3:-1])
    assert without_ties <= differ < 0.1
