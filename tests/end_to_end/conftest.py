"""The commands themselves: inside this process where only what they say counts, in their own where signals do."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantsr.teachers.files import save_teacher
from tests.conftest import ROOT, micro_video_teacher

MICRO_STEPS = {"minmax": ["method=minmax"], "passionsr": ["method=passionsr", "method.steps=2"]}


@dataclass
class Result:
    """What came of a command.

    Attributes:
        code: its exit code.
        out: standard output.
        err: standard error.
    """

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """One thread a process, and nothing of the process that runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "WANDB", "HYDRA", "PL_"))}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@contextlib.contextmanager
def as_it_was(python: str):
    """What a command changes in its process is put back; within, its own processes are started with ``python``."""
    before = dict(os.environ), sys.argv, sys.executable
    if "absl.logging" in sys.modules:
        # OpenVINO imports absl, whose handler closes the stream of its import when Hydra sets up logging: pytest's own.
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__
    try:
        sys.executable = python
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        sys.argv, sys.executable = before[1:]


@pytest.fixture(scope="session")
def run(python) -> Callable[..., Result]:
    """A function that runs ``train.py`` or ``eval.py`` in this process, which spares the imports."""

    def run(*arguments: str) -> Result:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with as_it_was(python), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            os.environ["COLUMNS"] = "200"
            sys.argv = [str(ROOT / arguments[0]), *arguments[1:]]
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as stop:
                code = stop.code or 0
        return Result(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def start(python) -> Callable[..., subprocess.Popen]:
    """A function that starts a command in a process of its own."""

    def start(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [python, str(ROOT / arguments[0]), *arguments[1:]],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run_alone(start) -> Callable[..., Result]:
    """A function that runs a command in a process of its own."""

    def run_alone(*arguments: str) -> Result:
        process = start(*arguments)
        out, err = process.communicate(timeout=300)
        return Result(process.returncode, out, err)

    return run_alone


@pytest.fixture(scope="session")
def micro(teacher_file, image_folder) -> list[str]:
    """What makes ``train.py`` take seconds: the micro teacher, the small images, few steps, one log."""
    return [
        f"teacher.weights={teacher_file}",
        "data=images",
        f"data.root={image_folder}",
        "data.crop=32",
        "data.batch_size=2",
        "logger=csv",
        "trainer.accelerator=cpu",
        "method.observation_steps=2",
    ]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Iterator[Path]:
    """Where the commands keep calibration pairs."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTSR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def video_teacher_file(tmp_path_factory) -> Path:
    """The file of a micro video teacher."""
    path = tmp_path_factory.mktemp("teacher") / "micro_video.safetensors"
    save_teacher(micro_video_teacher(), path)
    return path


@pytest.fixture(scope="session")
def motion() -> list[str]:
    """Small clips of the packaged photographs: three frames to calibrate on, four to validate on."""
    small = ["data.frames=3", "data.validation_frames=4", "data.crop=32", "data.clips_per_photo=1"]
    return ["data=motion", *small]


@pytest.fixture(scope="session")
def video_micro(video_teacher_file, motion) -> list[str]:
    """What makes ``train.py method=quantvsr`` take seconds."""
    ranks = ["method.smallest_rank=2", "method.largest_rank=8", "method.rank_multiple=2"]
    steps = ["method.complexity_steps=3", "method.refinement_steps=2", "method.alignment_steps=2", "method.pairs=6"]
    teacher = ["teacher=tiny_video", f"teacher.weights={video_teacher_file}"]
    return ["method=quantvsr", *teacher, *motion, *ranks, *steps, "logger=csv", "trainer.accelerator=cpu"]


@pytest.fixture(scope="session")
def trained(run, micro, tmp_path_factory) -> tuple[Path, Result]:
    """A finished run of PassionSR: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = run("train.py", *micro, *MICRO_STEPS["passionsr"], "bits=w6a6", "seed=3", f"hydra.run.dir={folder}")
    assert result.code == 0, result.err
    return folder, result
