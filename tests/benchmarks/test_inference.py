"""The benchmark of inference has a row for every network and runtime; how fast they are, no test says."""

import json
import subprocess
from itertools import product
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "inference"


@pytest.mark.slow
def test_every_runtime_has_a_row(python, tmp_path):
    runtimes = ["torch_bf16", "qartsr_w4a4"]
    networks = ["unet", "tiny_video"]
    options = ["--small", "--rounds", "1", "--threads", "1", "--networks", *networks, "--runtimes", *runtimes]
    command = [python, str(SCRIPT), *options, "--models", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["network"], row["runtime"]) for row in rows] == [*product(networks, runtimes)]
    assert all(row["seconds"] > 0 and row["gib"] > 0 and row["of_peak"] > 0 for row in rows)
    assert [row["megabytes"] is None for row in rows] == [True, False] * 2
    assert all(f"| {network} | {runtime} |" in run.stdout for network, runtime in product(networks, runtimes))
    assert {path.suffix for path in tmp_path.glob("small_sd_denoiser_qartsr_w4a4.*")} == {".xml", ".bin"}
    parts = ("encoder", "structure", "denoiser", "decoder")
    assert {path.stem for path in tmp_path.glob("small_tiny_video_*.xml")} == {
        f"small_tiny_video_{part}_qartsr_w4a4" for part in parts
    }
