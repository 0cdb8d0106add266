"""The full-size benchmark runs and says what it found; how fast, no test says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_size"


@pytest.fixture
def run(python) -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs the benchmark."""
    small = ["--small", "--output", "64", "--steps", "1", "--threads", "1"]
    command = [python, str(SCRIPT), *small]
    return lambda *options: subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def test_the_video_teacher_alone(run):
    found = run("--teacher", "mgldvsr", "--dtype", "float32")
    assert found.returncode == 0, found.stderr
    row = r"\| teacher \(float32\), one output of 64x64 \|  \| \d+\.\d\d \| \d+\.\d\d \|"
    assert re.search(f"^{row}$", found.stdout, re.MULTILINE), found.stdout


@pytest.mark.slow
def test_chosen_cases_alone(run, tmp_path):
    found = run("--method", "passionsr", "--cases", "plain", "--json", str(tmp_path / "rows.json"))
    assert found.returncode == 0, found.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 9 and not any(row["options"] for row in rows)  # Eight stages, and the student runs.


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    """The benchmark in this process."""
    monkeypatch.syspath_prepend(str(SCRIPT))
    spec = importlib.util.spec_from_file_location("full_size", SCRIPT / "__main__.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_a_run_that_stops_keeps_the_cases_that_are_over(script, tmp_path, monkeypatch):
    """The second case fails."""
    row = script.Row("ranges", "", 1.0, 2.0)

    def fails(case, threads):
        if case.gradient_checkpointing:
            raise KeyboardInterrupt
        return [row]

    monkeypatch.setattr(script, "run", fails)
    file = tmp_path / "rows.json"
    options = ["--method", "passionsr", "--cases", "plain", "checkpointing", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["full_size", *options])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert [found["what"] for found in json.loads(file.read_text())] == ["ranges"]


@pytest.mark.slow
def test_a_calibration_with_and_without_what_saves_memory(run, tmp_path):
    found = run("--method", "qartsr", "--json", str(tmp_path / "rows.json"))
    assert found.returncode == 0, found.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    stages = ["smoothing", "ranges", "module unet.conv_out", "module unet.time_embedding", "extended"]
    student = "student w4a4 (bfloat16, simulated), one output of 64x64"
    for options in ("", "gradient checkpointing", "per-part offload", "weights of their own"):
        assert [row["what"] for row in rows if row["options"] == options][-6:] == [*stages, student]
    assert all(row["seconds"] > 0 and row["gib"] > 0 for row in rows)
    shown = [line.partition(": ")[0] for line in found.stderr.splitlines()]  # As soon as they are measured.
    assert shown == [row["what"] + (f" ({row['options']})" if row["options"] else "") for row in rows]
    assert len(found.stdout.splitlines()) == 1 + 2 + len(rows)  # The table in the end.


def test_calibration_of_the_video_teacher_is_refused(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["full_size", "--teacher", "mgldvsr", "--method", "passionsr"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "measured on the osediff teacher" in capsys.readouterr().err


def test_a_process_that_is_killed_ends_the_benchmark(script, monkeypatch):
    """Such as by a system that is out of memory; here it becomes another program, which ends."""
    monkeypatch.setattr(script, "HEAVY", [])
    monkeypatch.setattr(script, "measure", os.execv)
    with pytest.raises(BrokenProcessPool):
        script.run("/bin/false", ["false"])
