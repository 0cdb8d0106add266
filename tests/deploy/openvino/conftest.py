from pathlib import Path

import pytest
import torch

from quantsr.methods.quantization import QuantizationMethod
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher
from tests.conftest import micro_teacher
from tests.deploy.test_artefact import calibrate as calibrate_student
from tests.deploy.test_artefact import saved
from tests.quant.conftest import _seed, calibrate, module_and_input  # noqa: F401  (the layers of every kind)


@pytest.fixture
def lq() -> torch.Tensor:
    return torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def artefact_of(tmp_path, lq):
    """A function from a method, its bits and options to its micro student and the artefact of it."""

    def make(kind: type[QuantizationMethod], bits: str = "w8a8", **options) -> tuple[Teacher, Path]:
        teacher = micro_teacher()
        method = kind(teacher, Bits.parse(bits), **options)
        calibrate_student(method.student, lq)
        saved(method.student, method.swaps, teacher, tmp_path / "run" / "artefact")
        return method.student, tmp_path / "run" / "artefact"

    return make
