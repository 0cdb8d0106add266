"""What several test folders share: very small teachers, a folder of small images."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

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
from quantsr.teachers.one_step import OneStepTeacher

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"

MICRO = {
    "timestep": 499,
    "prompt_tokens": 4,
    "color_fix": "wavelet",
    "vae": {
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
    },
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "use_linear_projection": True,
        "norm_num_groups": 4,
    },
}
"""The shape of the packaged teacher with the fewest channels."""


def micro_teacher(seed: int = 0, **changes) -> OneStepTeacher:
    """A random teacher whose epsilon is not zero, as that of :func:`build_teacher` would be."""
    teacher = build_teacher(seed=seed, **MICRO | changes)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(teacher.unet.conv_out.weight, std=0.1, generator=generator)
    return teacher


MICRO_VIDEO = {
    "frames": 3,
    "steps": 3,
    "start": 499,
    "latent_scale": 1.0,
    "prompt_tokens": 4,
    "flow": None,
    "color_fix": "wavelet",
    "vae": {"base_channels": 32, "channel_multipliers": [1, 1, 1], "blocks_per_level": 1},
    "unet": {
        "base_channels": 32,
        "channel_multipliers": [2, 2],
        "blocks_per_level": 1,
        "attention_levels": [1],
        "head_channels": 16,
        "prompt_channels": 16,
        "structure_channels": 32,
    },
    "structure": {
        "base_channels": 32,
        "channel_multipliers": [1, 2],
        "blocks_per_level": 1,
        "attention_levels": [1],
        "heads": 2,
        "out_channels": 32,
    },
}
"""Few channels, but 64 where the timestep matters: normalized in 32 groups of one channel, it would cancel out.

A latent pixel spans 4 pixels of the output.
"""


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
