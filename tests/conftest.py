"""What several test folders share: very small teachers, a folder of small images."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

if importlib.util.find_spec("triton") and not Path("/dev/nvidiactl").exists():
    # Kernels run in Triton's interpreter where there is no GPU; triton must know before anything imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from quantsr.data.images import ImagesDataModule
from quantsr.teachers.files import build_teacher, load_teacher, save_teacher
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.micro import MICRO, MICRO_VIDEO
from quantsr.teachers.one_step import OneStepTeacher

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
WIDTHS = {"desktop": (1200, 900), "phone": (390, 844)}
"""Of a page, and its height."""


def micro_teacher(seed: int = 0, **changes) -> OneStepTeacher:
    """A random teacher whose epsilon is not zero, as that of :func:`build_teacher` would be."""
    teacher = build_teacher(seed=seed, **MICRO | changes)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(teacher.unet.conv_out.weight, std=0.1, generator=generator)
    return teacher


def micro_video_teacher(seed: int = 0, **changes) -> MGLDVSRTeacher:
    """A random teacher of clips of 3 frames whose epsilon is not zero and whose temporal layers mix frames.

    Its optical flow guidance is off; ``flow="dis"`` turns it on.
    """
    teacher = build_teacher(kind="mgldvsr", seed=seed, **MICRO_VIDEO | changes)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(teacher.unet.out[2].weight, std=0.1, generator=generator)
    for name, parameter in teacher.named_parameters():
        if name.endswith("temporal_alpha"):
            torch.nn.init.constant_(parameter, 0.25)
    return teacher


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """The file of a micro teacher."""
    path = tmp_path_factory.mktemp("teacher") / "micro.safetensors"
    save_teacher(micro_teacher(), path)
    return path


@pytest.fixture
def teacher(teacher_file) -> OneStepTeacher:
    """The micro teacher, loaded anew for every test."""
    return load_teacher(teacher_file)


@pytest.fixture
def lq() -> torch.Tensor:
    """Two small low-quality images, (2, 3, 8, 8)."""
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def device() -> torch.device:
    """Where Triton's kernels run: a GPU, or the CPU with Triton's interpreter."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def picture(seed: int, side: int = 64) -> Image.Image:
    """Smooth colours, edges and a texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * (rng.uniform(1, 4) * x + rng.uniform(1, 4) * y + rng.uniform())) for _ in range(3)]
    pixels = 0.5 + 0.3 * np.stack(waves, -1)
    top, left = rng.integers(0, side // 2, 2)
    pixels[top : top + side // 3, left : left + side // 3] = rng.uniform(0, 1, 3)
    pixels[(y + x) % 0.2 < 0.05] *= 0.6
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Eight images of 64 x 64 pixels: ``ImagesDataModule`` keeps two of them for validation."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        picture(number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def build_data(image_folder) -> Callable[..., ImagesDataModule]:
    """A function that makes a data module of the image folder."""

    def build(**options) -> ImagesDataModule:
        return ImagesDataModule(image_folder, **{"crop": 32, "batch_size": 2} | options)

    return build


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test images."""
    if not SHARED.is_dir():
        pytest.skip("needs the real test images, which are not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """The interpreter for commands in processes of their own; without a GPU one that spares imports, see tests/warm."""
    if sys.platform != "linux" or torch.cuda.is_available():  # Forked processes cannot use a GPU.
        yield sys.executable
        return
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        socket = Path(folder) / "socket"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        server = subprocess.Popen([sys.executable, "-m", "tests.warm.server", socket], cwd=ROOT, env=environment)
        while not socket.exists():
            assert server.poll() is None
            time.sleep(0.05)
        patch.setenv("QUANTSR_WARM", str(socket))
        yield str(ROOT / "tests" / "warm" / "python.py")
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a screen; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome here")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()
