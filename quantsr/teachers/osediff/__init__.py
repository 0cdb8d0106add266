"""OSEDiff (arXiv 2406.08177) at full size: Stable Diffusion 2.1-base as a one-step image teacher."""

from pathlib import Path
from typing import Any

import torch

from quantsr.teachers.one_step import OneStepTeacher
from quantsr.teachers.random_weights import fill_random

STABLE_DIFFUSION: dict[str, dict[str, Any]] = {
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
    },
    "unet": {
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
}
"""The networks of Stable Diffusion 2.1-base, as arguments of diffusers' classes (their defaults say the rest)."""


def architecture(
    source: str | Path | None = None,
    checkpoint: str | Path | None = None,
    prompt_file: str | Path | None = None,
    seed: int = 0,
    **config: Any,
) -> OneStepTeacher:
    """The teacher of the arguments of :func:`load_osediff` or :func:`random_osediff`, whatever its weights are.

    No file is read. Under ``torch.device("meta")`` it takes no memory.

    Args:
        source, checkpoint, prompt_file, seed: where weights come from, which makes no difference here.
        config: arguments of :class:`OneStepTeacher`; networks of another size than :data:`STABLE_DIFFUSION`.
    """
    return OneStepTeacher(**{**STABLE_DIFFUSION, **config})


def random_osediff(seed: int = 0, **config: Any) -> OneStepTeacher:
    """OSEDiff with random weights, frozen, made in its own dtype.

    Args:
        seed: of the weights.
        config: arguments of :class:`OneStepTeacher`, ``dtype`` for one; networks of another size than full.
    """
    with torch.device("meta"):
        teacher = architecture(**config)
    fill_random(teacher, seed)
    return teacher.freeze()
