"""OSEDiff (arXiv 2406.08177) at full size: Stable Diffusion 2.1-base as a one-step image teacher."""

from pathlib import Path
from typing import Any

import torch

from quantsr.teachers.one_step import OneStepTeacher
from quantsr.teachers.osediff.adapters import read_adapters
from quantsr.teachers.osediff.prompt import empty_prompt
from quantsr.teachers.osediff.stable_diffusion import TITLES, find_files, network_weights
from quantsr.teachers.random_weights import fill_random
from quantsr.teachers.weight_files import existing_file, fill, read_embedding

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

GET_CHECKPOINT = (
    "download preset/models/osediff.pkl from https://github.com/cswry/OSEDiff, or leave teacher.checkpoint out"
)
GET_PROMPT = "give the file of a prompt embedding, or leave teacher.prompt_file out to compute it with the text encoder"


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
    # OSEDiff's and PassionSR's released code enlarges with Pillow.
    return OneStepTeacher(**{**STABLE_DIFFUSION, "bicubic": "pillow", **config})


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


def load_osediff(
    source: str | Path, checkpoint: str | Path | None = None, prompt_file: str | Path | None = None, **config: Any
) -> OneStepTeacher:
    """OSEDiff, frozen, its low-rank adapters merged into the weights of Stable Diffusion.

    With the constant embedding of the empty prompt this is PassionSR's full-precision model (arXiv 2411.17106).

    Args:
        source: Stable Diffusion 2.1-base: a folder in diffusers' layout, a .safetensors or .ckpt file in the original
            naming, or the id of a repository on the Hugging Face hub.
        checkpoint: OSEDiff's own file; None leaves Stable Diffusion as it is.
        prompt_file: a file with one tensor, the embedding of the empty prompt, ``(1, tokens, channels)``: (1, 77, 1024)
            at full size. None computes it with the text encoder of ``source``.
        config: arguments of :class:`OneStepTeacher`, ``dtype`` for one; networks of another size than full.

    Raises:
        UserError: a file that is missing or damaged, or holds something else or another size.
    """
    files = find_files(source)
    checkpoint, prompt_file = (
        path if path is None else existing_file(path, how)
        for path, how in ((checkpoint, GET_CHECKPOINT), (prompt_file, GET_PROMPT))
    )
    with torch.device("meta"):
        teacher = architecture(**config)
    networks = {"unet": teacher.unet, "vae": teacher.vae}
    adapters = read_adapters(checkpoint, networks) if checkpoint else {}
    like = teacher.prompt_embedding
    teacher.prompt_embedding = read_embedding(prompt_file, like) if prompt_file else empty_prompt(source, like)
    for name, network in networks.items():
        found = network_weights(name, files[name], network)
        change = adapters[name].merge if adapters else None
        fill(
            network,
            found.tensors,
            found.path,
            f"the {TITLES[name]} of Stable Diffusion 2.1",
            found.others,
            change=change,
        )
    return teacher.freeze()
