"""A very small MGLD-VSR teacher, with its guidance off, and clips for it."""

import pytest
import torch
import torch.nn.functional as F

from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from tests.conftest import micro_video_teacher


@pytest.fixture
def teacher() -> MGLDVSRTeacher:
    return micro_video_teacher().freeze()


@pytest.fixture
def lq() -> torch.Tensor:
    """Two clips of three frames, (2, 3, 3, 8, 8)."""
    return torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def panning() -> torch.Tensor:
    """A clip of a smooth picture that moves by one pixel per frame, (1, 3, 3, 16, 16)."""
    picture = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(6))
    picture = F.interpolate(picture, size=(18, 18), mode="bicubic").clamp(0, 1)
    return torch.stack([picture[..., 1:17, i : i + 16] for i in range(3)], dim=1)
