"""A student's three networks to OpenVINO models in a folder."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import openvino as ov
import torch
from torch import Tensor, nn

from quantsr import __version__
from quantsr.deploy.artefact import artefact_folder, load_student
from quantsr.deploy.openvino import attention, layer
from quantsr.deploy.openvino.convert import convert
from quantsr.deploy.openvino.packed import shorten
from quantsr.errors import UserError
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer
from quantsr.teachers.base import Teacher
from quantsr.teachers.one_step import OneStepTeacher

FOLDER, CONFIG = "openvino", "openvino.json"
EXAMPLE = 16
"""Side in latent pixels of what networks are traced with; sizes stay open."""


@dataclass(frozen=True)
class Floating:
    """A quantized module whose product stays in floating point.

    Attributes:
        name: of the module.
        why: in words.
    """

    name: str
    why: str


class Encoder(nn.Module):
    """Image to the moments of its latent, as ``vae.encoder`` with ``vae.quant_conv`` behind it."""

    def __init__(self, student: OneStepTeacher):
        super().__init__()
        self.encoder, self.quant_conv = student.vae.encoder, student.vae.quant_conv or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))


class Denoiser(nn.Module):
    """Latent to epsilon at the student's timestep and prompt."""

    def __init__(self, student: OneStepTeacher):
        super().__init__()
        self.unet, self.timestep, self.prompt = student.unet, student.timestep, student.prompt_embedding

    def forward(self, x: Tensor) -> Tensor:
        return self.unet(x, self.timestep, encoder_hidden_states=self.prompt, return_dict=False)[0]


class Decoder(nn.Module):
    """Latent to image, as ``vae.decoder`` behind ``vae.post_quant_conv``."""

    def __init__(self, student: OneStepTeacher):
        super().__init__()
        self.post_quant_conv, self.decoder = student.vae.post_quant_conv or nn.Identity(), student.vae.decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(x))


NETWORKS = {"encoder": Encoder, "denoiser": Denoiser, "decoder": Decoder}
"""By the part of the student that they are."""


def export(folder: str | Path) -> tuple[Path, list[Floating], dict[str, int]]:
    """Write the OpenVINO models of an artefact into it.

    Args:
        folder: an artefact, or the run that holds one.

    Returns:
        The new folder, the modules whose products stay in floating point, and the bytes of every network.

    Raises:
        UserError: no artefact there, or one that cannot be expressed: the sentence says why.
    """
    student = load_student(folder)
    floating = check(student)
    target = artefact_folder(folder) / FOLDER
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    sizes = {}
    for part, model in models(student):
        ov.save_model(model, unfinished / f"{part}.xml", compress_to_fp16=False)
        sizes[part] = sum(path.stat().st_size for path in unfinished.glob(f"{part}.*"))
    about = {
        "quantsr": __version__,
        "openvino": ov.__version__,
        "floating": [asdict(f) for f in floating],
        "bytes": sizes,
    }
    (unfinished / CONFIG).write_text(json.dumps(about, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return target, floating, sizes


def models(student: OneStepTeacher) -> Iterator[tuple[str, ov.Model]]:
    """The three networks, one after the other."""
    student.float()
    for part, network in NETWORKS.items():
        model = convert(network(student).eval(), example(student, part, EXAMPLE))
        shorten(model)
        yield part, model


def example(student: OneStepTeacher, part: str, side: int) -> Tensor:
    """A random input of a part, ``side`` latent pixels wide and high."""
    generator = torch.Generator().manual_seed(0)
    if part == "encoder":
        return torch.rand(1, 3, *[side * student.latent_factor] * 2, generator=generator)
    return torch.randn(1, student.vae.config.latent_channels, side, side, generator=generator)


def check(student: Teacher) -> list[Floating]:
    """What of a student cannot be integers.

    Raises:
        UserError: a student that cannot be expressed at all.
    """
    if not isinstance(student, OneStepTeacher):
        raise UserError(f"runtime=openvino takes one-step image models, this one is {student.kind}: use runtime=torch")
    floating = []
    for name, module in student.named_modules():
        if isinstance(module, FoldedLayer):
            if module.recipe.token_split:
                raise UserError(f"runtime=openvino cannot express the token split of {name}: use runtime=torch")
            if (why := layer.why_not(module)) is not None:
                floating.append(Floating(name, why))
        elif isinstance(module, QuantizedAttention) and (why := attention.why_not(module)) is not None:
            floating.append(Floating(name, why))
    return floating
