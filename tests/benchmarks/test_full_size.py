"""The full-size benchmark runs and says what it found; how fast, no test says."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_size.py"


def test_it_prints_parameters_seconds_and_memory():
    options = ["--small", "--latent", "24", "--frames", "3", "--threads", "1"]
    run = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for line in (
        r"UNet: \d+\.\d million parameters",
        r"structure encoder: \d+\.\d million parameters",
        r"3 frames with latents of 24 x 24: epsilon \(3, 4, 24, 24\)",
        r"one step: \d+\.\d\d s",
        r"peak memory: \d+\.\d\d GiB",
    ):
        assert re.search(f"^{line}$", run.stdout, re.MULTILINE), run.stdout
