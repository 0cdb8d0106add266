"""Artefacts of micro students, made once."""

from pathlib import Path

import pytest
import torch

from quantsr.methods.minmax import MinMax
from quantsr.quant.prepare import Swap
from quantsr.quant.recipe import Rule
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher
from tests.conftest import micro_teacher, micro_video_teacher
from tests.deploy.test_artefact import RECIPES, calibrate, saved, student_of

ABOUT = {
    "name": "a_run",
    "method": "MinMax",
    "bits": "w8a8",
    "teacher": "tiny_image",
    "data": "images",
    "metrics": {"student": {"psnr_y": 25.125, "ssim": 0.75}, "fidelity_psnr": 31.5},
}


def minmax(teacher: Teacher) -> tuple[Teacher, list[Swap]]:
    frames = (teacher.frames,) if teacher.frames > 1 else ()
    method = MinMax(teacher, Bits(8, 8))
    calibrate(method.student, torch.rand(2, *frames, 3, 8, 8, generator=torch.Generator().manual_seed(5)))
    return method.student, method.swaps


@pytest.fixture(scope="session")
def image_run(tmp_path_factory) -> Path:
    """The run folder of a student of images in tiles of 32 output pixels."""
    folder, teacher = tmp_path_factory.mktemp("image_run"), micro_teacher(tile=32).freeze()
    saved(*minmax(teacher), teacher, folder / "artefact", ABOUT)
    return folder


@pytest.fixture(scope="session")
def video_run(tmp_path_factory) -> Path:
    """The run folder of a student of clips, 3 frames at a time."""
    folder, teacher = tmp_path_factory.mktemp("video_run"), micro_video_teacher().freeze()
    saved(*minmax(teacher), teacher, folder / "artefact", ABOUT | {"teacher": "/of/someone.safetensors"})
    return folder


@pytest.fixture(scope="session")
def dynamic_run(tmp_path_factory) -> Path:
    """The run folder of a student of images whose ranges are those of the whole tensor that a layer is given."""
    folder, teacher = tmp_path_factory.mktemp("dynamic_run"), micro_teacher(tile=32).freeze()
    student, swaps = student_of(teacher, [Rule("*", RECIPES["groups"])], torch.rand(2, 3, 8, 8))
    saved(student, swaps, teacher, folder / "artefact", ABOUT)
    return folder
