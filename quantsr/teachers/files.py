"""Teacher files: one safetensors file that holds the weights and, in its metadata, everything to build the model."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quantsr.errors import UserError
from quantsr.teachers.one_step import OneStepTeacher

PACKAGED = Path(__file__).parent / "weights"


def save_teacher(teacher: OneStepTeacher, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write ``teacher`` to ``path``; weights are stored as ``dtype``."""
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in teacher.state_dict().items()}
    path = Path(path)
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"one_step": json.dumps(teacher.config)})
    unfinished.replace(path)


def load_teacher(weights: str | Path) -> OneStepTeacher:
    """Build the teacher that a file holds, in float32, frozen.

    Args:
        weights: name of a packaged teacher (``tiny_image``) or path of a file that :func:`save_teacher` wrote.

    Raises:
        UserError: no such file, or it holds no teacher.
    """
    packaged = PACKAGED / f"{weights}.safetensors"
    path = packaged if packaged.is_file() else Path(weights).expanduser()
    if not path.is_file():
        names = sorted(p.stem for p in PACKAGED.glob("*.safetensors"))
        raise UserError(
            f"no teacher weights at {path}: give one of the packaged {names} or the path of a .safetensors file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("one_step", "null"))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file ({error})") from error
    if config is None:
        raise UserError(f"{path} was not written by quantsr: its metadata has no teacher configuration")
    teacher = build_teacher(**config)
    teacher.load_state_dict(tensors)
    return teacher.freeze()


def build_teacher(seed: int = 0, **config: Any) -> OneStepTeacher:
    """A one-step teacher with random weights drawn from ``seed``: what ``method=teacher`` starts from.

    The UNet's last convolution starts at zero, as in latent diffusion's own code: z_H is then z_L / sqrt(abar_t) at
    first, and encoder and decoder learn to pass an image on from the first step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = OneStepTeacher(**config)
    torch.nn.init.zeros_(teacher.unet.conv_out.weight)
    torch.nn.init.zeros_(teacher.unet.conv_out.bias)
    return teacher
