"""Where the Triton kernels of these tests run."""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """A GPU, or the CPU with Triton's interpreter (see tests/conftest.py)."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
