"""The authors' numbers for complexities and ranks."""

from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "quantvsr_stca.safetensors"


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    if not REFERENCE.is_file():
        pytest.skip("reference vectors (../shared/reference) are not here")
    with safe_open(REFERENCE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
