"""Images for the data tests: small ones made on the spot, and real ones if they lie beside the repository."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test images."""
    if not SHARED.is_dir():
        pytest.skip("needs the real test images, which are not part of the repository")
    return SHARED


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Writes an image file of random pixels, the same for the same seed."""

    def save(path: Path, width: int = 64, height: int = 64, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return save
